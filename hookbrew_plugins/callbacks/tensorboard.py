"""TensorBoard: every number of a row as a scalar, and the configuration as text."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs

from hookbrew.loop import State
from hookbrew.plugin import options, when
from hookbrew_plugins.callbacks.board import board
from hookbrew_plugins.callbacks.inside import inside


@options
class Tensorboard:
    """Writes losses by name, weights, learning rate, gradient norm and evaluations for TensorBoard."""

    folder: str = attrs.field(default="tb", validator=inside)
    """The folder of the event files, in the run folder."""

    def build(self) -> Scalars:
        """The callback."""
        return Scalars(self.folder)


@attrs.define(eq=False)
class Scalars:
    """`x` is the optimizer step in all charts."""

    priority: ClassVar[int] = 80
    optional: ClassVar[bool] = True

    _folder: str
    _writer: Any = None

    @when(main=True)
    def run_start(self, state: State) -> None:
        """Open the writer; its import takes seconds, so it is not made sooner."""
        folder = state.require_folder("tensorboard")
        again = state.step + 1  # what a process that was killed wrote of the steps to come is dropped
        self._writer = board(folder / self._folder, again, max_queue=1000, flush_secs=30)
        resolved = folder / "resolved.toml"
        if resolved.exists():
            text = "\n".join(f"    {line}" for line in resolved.read_text(encoding="utf-8").splitlines())
            self._writer.add_text("config", text)

    @when(main=True)
    def log(self, state: State) -> None:
        """The numbers of a row: losses under `loss/`, weights under `weight/`, the rest under `train/`."""
        for name, value in state.record.items():
            if name != "step":
                self._writer.add_scalar(name if "/" in name else f"train/{name}", value, state.step)

    @when(main=True)
    def eval_end(self, state: State) -> None:
        """The numbers of an evaluation, under `eval/`."""
        for name, value in state.metrics.items():
            self._writer.add_scalar(f"eval/{name}", value, state.step)

    def close(self, state: State) -> None:
        """Write what is still queued."""
        if self._writer is not None:
            self._writer.close()
