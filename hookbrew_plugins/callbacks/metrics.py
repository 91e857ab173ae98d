"""Rows of numbers, one JSON object a line: the record of a run that every other tool can read."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import ClassVar, TextIO

import attrs

from hookbrew.errors import FolderError
from hookbrew.loop import State, finite
from hookbrew.plugin import options, when
from hookbrew_plugins.callbacks.inside import inside

log = logging.getLogger("hookbrew")


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

    priority: ClassVar[int] = 50

    _file: str
    _stream: TextIO | None = None
    _size: int = 0
    """Bytes of the file when the checkpoint was made that the run goes on from."""

    @when(main=True)
    def run_start(self, state: State) -> None:
        """Open the file, and cut off the rows of steps that are about to be made again."""
        path = state.require_folder("metrics") / self._file
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("a", buffering=1, encoding="utf-8")
        there = self._stream.tell()
        if there < self._size:
            log.warning("%s has %d bytes and had %d at step %d: rows are lost", path, there, self._size, state.step)
        self._stream.truncate(min(there, self._size))
        self._stream.seek(0, os.SEEK_END)  # else it would still tell the place where the old end was

    def state_dict(self) -> dict[str, int]:
        """How long the file is; what it holds is on the disk then."""
        if self._stream is None:
            return {"bytes": 0}
        self._stream.flush()
        os.fsync(self._stream.fileno())
        return {"bytes": self._stream.tell()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """How long it was."""
        self._size = state["bytes"]

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
