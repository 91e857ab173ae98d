"""Where a page is written, and which files it may replace."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hookbrew.errors import FolderError
from hookbrew.folder import write

NAME = "report.html"
MARK = '<meta name="generator" content="hookbrew report'
"""Near the top of every page of ours."""


def beside(folders: Sequence[Path]) -> Path:
    """Where a page is written if nothing else is said: in the run folder, or in the folder that holds all of them."""
    if len(folders) == 1:
        return folders[0] / NAME
    return Path(os.path.commonpath([folder.absolute() for folder in folders])) / NAME


def refuse(path: Path, *, overwrite: bool) -> None:
    """Raise FolderError unless a page may be written here: over an earlier page, or with overwrite over any file."""
    if path.is_dir():
        raise FolderError(f"{path} is a folder; name a file, as {path / NAME}")
    if path.exists() and not overwrite and not ours(path):
        raise FolderError(f"{path} is no earlier report; give another name, or replace it with --overwrite")


def ours(path: Path) -> bool:
    """Whether a file is a page of ours."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return MARK in file.read(1000)
    except OSError:
        return False


def put(path: Path, text: str, *, overwrite: bool) -> None:
    """Write a page in one step; raises FolderError where it may not stand, or cannot be written."""
    refuse(path, overwrite=overwrite)
    write(path, text)
