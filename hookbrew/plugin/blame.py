"""Whose line of code raised? Asked only after something failed, so that success costs nothing."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

MACHINERY = ("hookbrew", "importlib", "pluggy", "attr", "attrs")
"""Packages that run a plugin's code, and are never to blame for it."""


def blame(error: BaseException, function: Callable[..., Any], sentence: str) -> None:
    """Add the note `sentence (file:line)` to an error that left `function`; no place if it did not pass there.

    For a hook of pluggy, `function` is `HookImpl.function`.
    """
    codes = {getattr(layer, "__code__", None) for layer in (function, inspect.unwrap(function))}
    spots = [
        spot(frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code in codes
    ]
    error.add_note(f"{sentence} ({spots[-1]})" if spots else sentence)


def outside(error: BaseException) -> str:
    """`file:line` of the last frame that belongs to no machinery, or "" if there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return spot(error.filename, error.lineno or 1)
    spots = [
        spot(frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if package(frame.f_globals) not in MACHINERY
    ]
    return spots[-1] if spots else ""


def package(names: dict[str, Any]) -> str:
    """The top-level package of a module, by the names in it; "" for code that was typed in."""
    return str(names.get("__name__") or "").partition(".")[0]


def spot(file: str, line: int) -> str:
    """`file:line`, the file relative to the folder of `sys.path` that it was imported from."""
    path = Path(file)
    roots = [root for root in map(Path, filter(None, sys.path)) if path.is_relative_to(root)]
    nearest = max(roots, key=lambda root: len(root.parts), default=None)
    return f"{path.relative_to(nearest).as_posix() if nearest else file}:{line}"
