"""Checkpoints: all of a training between two steps, from which `hookbrew resume` goes on."""

from __future__ import annotations

from typing import ClassVar

import attrs
from attrs.validators import ge, optional

from hookbrew.errors import CallbackError
from hookbrew.loop import State, Store
from hookbrew.plugin import at_least, options
from hookbrew_plugins.callbacks.inside import inside


@options
class Checkpoint:
    """Keeps the whole training between two steps: student, projections, optimizer, random states, what callbacks know.

    Every run of the command line has it. A signal, and the end of the training, make one besides.
    """

    every: int | None = attrs.field(default=None, validator=optional(ge(1)))
    """Steps between two checkpoints."""
    epochs: int | None = attrs.field(default=None, validator=optional(ge(1)))
    """Epochs between two checkpoints; 1 when none of the three is given."""
    per_epoch: int | None = attrs.field(default=None, validator=optional(ge(1)))
    """Checkpoints in each epoch, evenly apart."""
    keep_last: int = at_least(2, 2)
    """How many of the newest stay, 2 at least: one may be damaged. Older ones go when a newer one stands."""
    keep_every: int | None = attrs.field(default=None, validator=optional(ge(1)))
    """Checkpoints of steps that are multiples of this stay for ever."""
    folder: str = attrs.field(default="checkpoints", validator=inside)
    """Where, in the run folder: one folder a checkpoint, `step-00000120`."""

    def build(self) -> Keeper:
        """The callback."""
        return Keeper(self)


@attrs.define(eq=False)
class Keeper:
    """Says where checkpoints go, and asks for them; the loop makes them, at the boundary of a step."""

    priority: ClassVar[int] = 100

    _options: Checkpoint

    def run_start(self, state: State) -> None:
        """Find out now whether there is a place to write to."""
        folder = state.require_folder("checkpoint") / self._options.folder
        if self._options.per_epoch is not None and state.total_epochs is None:
            raise CallbackError("callback 'checkpoint': per_epoch needs train.epochs; of train.steps there is `every`")
        state.store = Store(folder, keep_last=self._options.keep_last, keep_every=self._options.keep_every)
        if state.ranks.main:
            state.store.clean()

    def step_end(self, state: State) -> None:
        """A checkpoint every so many steps."""
        every, parts = self._options.every, self._options.per_epoch
        if every is not None and state.step % every == 0:
            state.request_save()
        if parts is not None and state.total_epochs is not None:
            steps = state.total_steps // state.total_epochs
            there = state.step - (state.epoch - 1) * steps
            if there * parts // steps > (there - 1) * parts // steps:
                state.request_save()

    def epoch_end(self, state: State) -> None:
        """A checkpoint every so many epochs."""
        alone = self._options.every is None and self._options.per_epoch is None
        every = self._options.epochs or (1 if alone else None)
        if every is not None and state.epoch % every == 0:
            state.request_save()
