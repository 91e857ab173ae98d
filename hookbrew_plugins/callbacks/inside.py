"""Where callbacks may write: in the run folder, never beside it, where earlier runs are."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any


def inside(_: Any, attribute: Any, value: str) -> None:
    """A validator of attrs: raises ValueError unless the path leads to something in the run folder."""
    path = PurePath(value)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"'{attribute.name}' must be a relative path, to something in the run folder: {value!r}")
