"""The student at the end of a run, in files that load without hookbrew."""

from __future__ import annotations

import attrs

from hookbrew.loop import State, save
from hookbrew.plugin import options
from hookbrew_plugins.callbacks.inside import inside


@options
class Weights:
    """Saves the trained student when the run is complete; it loads without hookbrew."""

    folder: str = attrs.field(default="final", validator=inside)
    """Where, in the run folder: by `save_pretrained` for a model of transformers, else as student.safetensors."""

    def build(self) -> Final:
        """The callback."""
        return Final(self.folder)


@attrs.define(eq=False)
class Final:
    """Writes once, at the end; an aborted run leaves nothing that could be taken for a result."""

    _folder: str

    def run_start(self, state: State) -> None:
        """Find out now whether there is a place to write to."""
        state.require_folder("weights")

    def run_end(self, state: State) -> None:
        """Write the student."""
        save(state.student, state.require_folder("weights") / self._folder)
