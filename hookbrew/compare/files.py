"""Where a comparison is written, and which files it may replace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hookbrew.compare.page import page
from hookbrew.compare.result import Comparison
from hookbrew.errors import FolderError
from hookbrew.folder import write
from hookbrew.report import files

BEGIN = '{\n "comparison":'
"""How our JSON begins."""


def refuse(data: Path | None, to: Path | None, *, overwrite: bool) -> None:
    """Raise FolderError before anything is measured, unless both files may be written."""
    for path in (data, to):
        if path is not None and not path.absolute().parent.is_dir():
            raise FolderError(f"{path} cannot be written: there is no folder {path.parent}")
    if to is not None:
        files.refuse(to, overwrite=overwrite)
    if data is not None and data.is_dir():
        raise FolderError(f"{data} is a folder; name a file, as {data / 'compare.json'}")
    if data is not None and data.exists() and not overwrite and not ours(data):
        raise FolderError(f"{data} is no earlier comparison; give another name, or replace it with --overwrite")


def ours(path: Path) -> bool:
    """Whether a file is a comparison."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(len(BEGIN)) == BEGIN
    except OSError:
        return False


def put(found: Comparison, data: Path | None, to: Path | None, *, overwrite: bool) -> Iterator[Path]:
    """Write what was asked for, and give the paths; raises FolderError where one cannot be written."""
    if data is not None:
        write(data, found.as_json())
        yield data
    if to is not None:
        files.put(to, page(found), overwrite=overwrite)
        yield to
