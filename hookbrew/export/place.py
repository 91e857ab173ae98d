"""Where an export is written: beside its place first, and there only when all of it is verified."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from hookbrew import words
from hookbrew.errors import FolderError
from hookbrew.store import synced

CARD = "README.md"
FACTS = "export.json"
"""What an export says of itself, for programs."""


def refuse(folder: Path, run: Path, *, overwrite: bool) -> None:
    """Raise FolderError unless an export may stand here; nothing is touched.

    overwrite: whether an earlier export that stands here may be replaced; nothing else may, nor what was put into it.
    """
    try:
        there = os.path.lexists(folder)
        parent = next(p for p in folder.parents if p.exists())
    except OSError as error:
        raise FolderError(f"{folder} cannot be made: {error.strerror}") from error
    if not there:
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise FolderError(f"{folder} cannot be made: {parent} is not a folder that can be written to")
        return
    if folder.is_symlink() or not folder.is_dir():
        kind = "a link" if folder.is_symlink() else "a file"
        raise FolderError(f"{folder} is {kind}, which is not replaced; give another name")
    if not overwrite:
        raise FolderError(f"{folder} exists already; give another, or replace an earlier export with --overwrite")
    if folder.resolve() in (run.resolve(), *run.resolve().parents):
        raise FolderError(f"{folder} holds the run that is exported; give another folder")
    more = foreign(folder)
    if more:
        raise FolderError(f"{folder} holds what is no part of an export: {words.several(more)}; remove it yourself")


def foreign(folder: Path) -> list[str]:
    """The files of a folder that no export of ours wrote there."""
    try:
        listed = {*json.loads((folder / FACTS).read_text(encoding="utf-8"))["files"], FACTS, CARD}
    except (OSError, ValueError, KeyError, TypeError):
        listed = set()
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    return sorted(there - listed)


@contextmanager
def fresh(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes its place when the block ends; after an exception nothing of it is left.

    Raises FolderError when it cannot be made, or another process writes there.
    """
    new, old = (folder.with_name(f".{kind}-{folder.name}") for kind in ("new", "old"))
    lock = FileLock(folder.with_name(f".lock-{folder.name}"))
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with taken(lock, folder):
            try:
                if os.path.lexists(old) and not os.path.lexists(folder):
                    old.rename(folder)  # a process was killed between the two renames below
                for left in (new, old):
                    shutil.rmtree(left, ignore_errors=True)
                new.mkdir()
                yield new
                flushed(new)
                settle(new, folder, old)
            finally:
                shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise FolderError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        for parent in made:  # from the innermost on; those that hold something stay
            with suppress(OSError):
                parent.rmdir()


@contextmanager
def taken(lock: FileLock, folder: Path) -> Iterator[None]:
    """Hold a lock, and remove its file; raises FolderError if another process holds it."""
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise FolderError(f"another process exports to {folder}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


def settle(new: Path, folder: Path, old: Path) -> None:
    """Rename a folder into its place; what stood there stands again if that fails."""
    if not folder.exists():
        new.rename(folder)
        return
    folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        if not folder.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def flushed(folder: Path) -> None:
    """Write all files of a folder down to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    synced(folder)


def sizes(folder: Path) -> dict[str, int]:
    """The files of a folder, with their bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
