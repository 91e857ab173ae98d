"""metrics.jsonl as curves: every number by its name, over the steps.

A process that is killed leaves half a line, and one that goes on from a checkpoint writes some steps again: neither
is a mistake of the file. What could not be read is counted, so that the page can say so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import attrs

PLACES = ("step", "epoch")
"""Keys of a row that say where it stands, not what was measured."""


@attrs.frozen
class Rows:
    """What one file says; rows are in the order of their steps."""

    rows: tuple[Mapping[str, Any], ...] = ()
    unread: int = 0
    """Lines that hold no row."""
    repeated: int = 0
    """Rows that a later one of the same training replaced."""

    @property
    def last(self) -> int:
        """The step of the last row; 0 without any."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def wordy(self) -> tuple[str, ...]:
        """Keys that held something else than a number: nothing to draw."""
        every = {key: True for row in self.rows for key, value in row.items() if not is_number(value)}
        return tuple(every)

    def curves(self) -> dict[str, dict[int, float | None]]:
        """By name, the number at each step; None where it was not finite."""
        made: dict[str, dict[int, float | None]] = {}
        for row in self.rows:
            for name, value in row.items():
                if name not in PLACES and is_number(value):
                    made.setdefault(name, {})[row["step"]] = finite(value)
        return made


def load(path: Path) -> Rows:
    """Read a file; one that is not there, or cannot be read, has no rows."""
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            return parse(lines)
    except OSError:
        return Rows()


def parse(lines: Iterable[str]) -> Rows:
    """Read lines; where the steps go back, a training went on from a checkpoint, and what it did again counts."""
    rows: list[Mapping[str, Any]] = []
    unread = repeated = 0
    for line in lines:
        row = parsed(line)
        if row is None:
            unread += bool(line.strip())
            continue
        back = bool(rows) and rows[-1]["step"] > row["step"]
        while back and rows and rows[-1]["step"] >= row["step"]:
            rows.pop()
            repeated += 1
        rows.append(row)
    return Rows(tuple(rows), unread, repeated)


def parsed(line: str) -> Mapping[str, Any] | None:
    """The row of a line, or None."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return row if is_step(step) else None


def is_step(value: object) -> TypeGuard[int]:
    """Whether it can be a number of steps: an integer that a float holds exactly."""
    return type(value) is int and 0 <= value < 2**53


def is_number(value: object) -> bool:
    """Whether it is a number, or None, which stands for one that was not finite."""
    return value is None or type(value) in (int, float)


def finite(value: float | None) -> float | None:
    """The number, or None; JSON of other writers may say NaN itself."""
    try:
        return None if value is None or not math.isfinite(value) else float(value)
    except OverflowError:  # an integer that no float holds
        return None
