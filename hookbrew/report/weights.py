"""How large a saved student is, by the heads of its files: no tensor is read."""

from __future__ import annotations

import math
from pathlib import Path

import attrs
from safetensors import SafetensorError, safe_open

EXTRAS = "extras.safetensors"
"""What was trained besides the student, and is no part of it."""


@attrs.frozen
class Weights:
    """A folder with a student."""

    bytes: int
    """Of all its files."""
    numbers: int | None
    """That its tensors hold, parameters and buffers, each shared one once; None if it is in another form."""


def weighed(folder: Path) -> Weights | None:
    """Look at a folder; None if there is none."""
    if not folder.is_dir():
        return None
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    tensors = [path for path in files if path.suffix == ".safetensors" and path.name != EXTRAS]
    try:
        numbers = sum(map(held, tensors)) if tensors else None
    except (OSError, SafetensorError):
        numbers = None
    return Weights(sum(path.stat().st_size for path in files), numbers)


def held(path: Path) -> int:
    """How many numbers a file of safetensors holds."""
    with safe_open(path, framework="numpy") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
