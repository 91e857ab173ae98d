"""The images of a run, with what they say of themselves: a PNG may have a title and a description."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import attrs

from hookbrew.report.read import Run

PICTURES = 40
"""So many images of a run are in the page; older ones are only counted."""
SIGNATURE = b"\x89PNG\r\n\x1a\n"
FIRST = b"\0\0\0\rIHDR"
LONGEST = 2000
"""Letters of a text that are shown."""


@attrs.frozen
class Image:
    """One image, as the page has it."""

    name: str
    """Where it is in the run folder."""
    uri: str
    title: str = ""
    text: str = ""
    """What there is to see, also for those who do not see it."""
    width: int | None = None
    """In pixels; None if it is not told."""

    @property
    def heading(self) -> str:
        """What stands above it."""
        return self.title or self.name


def pictured(run: Run) -> tuple[list[Image], list[str]]:
    """The images of a run, newest first; and what is left out."""
    found: dict[Path, str] = {}
    for part in run.parts:
        for path in part.images:
            found[path] = str(path.relative_to(run.folder))
    newest = sorted(found, key=lambda path: (-path.stat().st_mtime_ns, found[path]))
    shown, notes = list[Image](), list[str]()
    for path in newest[:PICTURES]:
        content = path.read_bytes()
        if content.startswith(SIGNATURE):
            shown.append(image(found[path], content))
        else:
            notes.append(f"{found[path]} is no PNG, whatever its name says.")
    if len(newest) > PICTURES:
        notes.append(f"{len(newest) - PICTURES:,} older images are in the folder only.")
    return shown, notes


def image(name: str, content: bytes) -> Image:
    """A PNG with its title and description, if it has them."""
    texts = {key: text[:LONGEST] for key, text in told(content)}
    uri = "data:image/png;base64," + base64.b64encode(content).decode("ascii")
    wide = int.from_bytes(content[16:20], "big") if content[8:16] == FIRST else 0
    return Image(name, uri, texts.get("Title", ""), texts.get("Description", ""), wide or None)


def told(content: bytes) -> Iterator[tuple[str, str]]:
    """The keywords and texts of a PNG, those that are not compressed (its specification, section 11.3.3)."""
    place = len(SIGNATURE)
    while place + 8 <= len(content):
        size, kind = int.from_bytes(content[place : place + 4], "big"), content[place + 4 : place + 8]
        if kind == b"tEXt":
            key, _, text = content[place + 8 : place + 8 + size].partition(b"\0")
            yield key.decode("latin-1"), text.decode("latin-1")
        place += size + 12  # with the length, the kind and the checksum
