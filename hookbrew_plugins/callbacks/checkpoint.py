"""Copies of the student during the run, with what is trained beside it."""

from __future__ import annotations

import shutil

import attrs

from hookbrew.errors import FolderError
from hookbrew.loop import State, save
from hookbrew.plugin import at_least, options
from hookbrew_plugins.callbacks.inside import inside


@options
class Checkpoint:
    """Saves the student's weights during the run, and keeps the newest.

    Projections, and losses that learn or remember, are beside it in `extras.safetensors`.
    """

    every: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    """Steps between two copies; at the end of each epoch when left out."""
    keep: int = at_least(1, 3)
    """How many copies stay; older ones go after a newer one stands."""
    folder: str = attrs.field(default="checkpoints", validator=inside)
    """Where, in the run folder: one folder a copy, `step-00000120`."""

    def build(self) -> Copies:
        """The callback."""
        return Copies(self.every, self.keep, self.folder)


@attrs.define(eq=False)
class Copies:
    """A copy appears complete or not at all."""

    _every: int | None
    _keep: int
    _folder: str

    def run_start(self, state: State) -> None:
        """Find out now whether there is a place to write to."""
        state.require_folder("checkpoint")

    def step_end(self, state: State) -> None:
        """A copy every so many steps."""
        if self._every is not None and state.step % self._every == 0:
            self._save(state)

    def epoch_end(self, state: State) -> None:
        """A copy at the end of an epoch."""
        if self._every is None:
            self._save(state)

    def _save(self, state: State) -> None:
        folder = state.require_folder("checkpoint") / self._folder
        state.announce("checkpoint_saving")
        try:
            save(state.student, folder / f"step-{state.step:08}", state.extras)
        except FolderError:
            state.announce("checkpoint_failed")
            raise
        state.announce("checkpoint_saved")
        for old in sorted(folder.glob("step-*"))[: -self._keep]:
            shutil.rmtree(old)
