"""Rows of numbers, one JSON object a line: the record of a run that every other tool can read."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TextIO

import attrs

from hookbrew.errors import FolderError
from hookbrew.loop import State, finite
from hookbrew.plugin import options
from hookbrew_plugins.callbacks.inside import inside


@options
class Metrics:
    """Writes each row of metrics and each evaluation to a file of the run folder, one JSON object a line."""

    file: str = attrs.field(default="metrics.jsonl", validator=inside)
    """The name of the file, in the run folder."""

    def build(self) -> Writer:
        """The callback."""
        return Writer(self.file)


@attrs.define(eq=False)
class Writer:
    """Line-buffered: what was logged is on disk when a process dies. A number that is not finite becomes null."""

    _file: str
    _stream: TextIO | None = None

    def run_start(self, state: State) -> None:
        """Open the file."""
        path = state.require_folder("metrics") / self._file
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("a", buffering=1, encoding="utf-8")

    def log(self, state: State) -> None:
        """A row of the training."""
        self._write(state.record)

    def eval_end(self, state: State) -> None:
        """A row of an evaluation: its numbers with `eval/` before their names."""
        row = {f"eval/{name}": value for name, value in state.metrics.items()}
        self._write({"step": state.step, "epoch": state.epoch, **row})

    def close(self, state: State) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()

    def _write(self, row: dict[str, float]) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(json.dumps(finite(row), allow_nan=False) + "\n")
        except OSError as error:
            stream, self._stream = self._stream, None
            with suppress(OSError):  # what could not be written is tried once more, in vain
                stream.close()
            raise FolderError(f"{stream.name} cannot be written: {error.strerror}") from error
