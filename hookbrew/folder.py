"""The run folder: what a run leaves on disk, and how earlier runs stay safe.

config.toml     the file as it was given            resolved.toml   every default explicit; it reproduces the run
env.json        versions, plugins, command, start   metrics.jsonl, tb/, checkpoints/, final/   of callbacks
status.json     running | done | preempted | stopped | failed, with step and reason
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hookbrew.errors import FolderError

STATUS = "status.json"
LOCK = ".lock"


def refuse(folder: Path, *, overwrite: bool) -> None:
    """Raise FolderError unless a run may be written here; nothing is touched.

    overwrite: whether a run folder that stands here may be replaced; any other folder may not.
    """
    try:
        there = folder.exists()
        parent = next(p for p in folder.parents if p.exists())
    except OSError as error:
        raise FolderError(f"output {folder} cannot be made: {error.strerror}") from error
    if not there:
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise FolderError(f"output {folder} cannot be made: {parent} is not a folder that can be written to")
        return
    if not overwrite:
        raise FolderError(
            f"output {folder} exists already; give another, as with -s output=..., or replace it with --overwrite"
        )
    if folder.is_symlink():
        raise FolderError(f"output {folder} is a link, which is not replaced; name the folder itself")
    if not (folder / STATUS).is_file():
        raise FolderError(f"output {folder} is not a folder of an earlier run (it has no {STATUS}); remove it yourself")


def create(folder: Path, *, overwrite: bool) -> None:
    """Make the run folder; an earlier run is removed only now, when all checks of the new one have passed."""
    refuse(folder, overwrite=overwrite)
    try:
        old = folder.with_name(f".old-{folder.name}")
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            with locked(folder):
                folder.rename(old)  # in one step: an interrupt leaves the whole run or none, never half of one
        folder.mkdir(parents=True)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise FolderError(f"output {folder} cannot be made: {error.strerror or error}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else writes into a run folder meanwhile; raises FolderError if another process does already.

    The lock goes with the process, however that ends.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise FolderError(f"{folder} is in use by another process, which trains in it") from error
    except OSError as error:
        raise FolderError(f"{folder} cannot be locked: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def write(path: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old or the new text, never half of one.

    Raises FolderError when it cannot be written.
    """
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise FolderError(f"{path} cannot be written: {error.strerror}") from error


def status(folder: Path, word: str, **facts: Any) -> None:
    """How the run stands: a word and what belongs to it."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write(folder / STATUS, json.dumps({"status": word, "time": now, **facts}, indent=2) + "\n")


def environment(plugins: Mapping[str, str]) -> str:
    """Versions and the command, as JSON; plugins maps names to versions."""
    packages = {name: version(name) for name in ("hookbrew", "torch", "pluggy", "attrs", "cattrs")}
    facts = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "plugins": dict(plugins),
        "argv": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return json.dumps(facts, indent=2) + "\n"
