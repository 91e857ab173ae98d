"""A file becomes a tree with places, or a ConfigError that says where it is not TOML."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hookbrew import words
from hookbrew.config.document import Source
from hookbrew.config.keys import Keys, dotted
from hookbrew.config.merge import Layer
from hookbrew.config.spans import Lines, Scanner, Span, locate
from hookbrew.errors import ConfigError, Place, Problem

DEEPEST = 32
POSITION = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
TWICE = ("Cannot overwrite", "Cannot declare", "Cannot mutate", "Duplicate")


def load(path: Path, *, said: Problem | None = None) -> Layer:
    """Read one file. said: the key that names this file, for the message when there is none."""
    text = content(path, said)
    tree = parsed(text, str(path))
    folder = Path(os.path.abspath(path)).parent
    sources = {keys: Source(place, folder) for keys, place in locate(text, str(path)).items()}
    sources[()] = Source(Place(str(path), 1, 1), folder)
    layer = Layer(tree, sources)
    problems = [Problem(dotted(keys), why, layer.sources[keys].where) for keys, why in excesses(tree)]
    if problems:
        raise ConfigError(problems)
    return layer


def content(path: Path, said: Problem | None) -> str:
    """The text of a file, with line feeds only."""
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        named = said or Problem("", "", str(path))
        raise ConfigError([Problem(named.path, unreadable(path, error, said is not None), named.place)]) from error
    try:
        # editors on Windows begin a file with a mark, which tomllib refuses
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        place = Place(str(path), before.count(b"\n") + 1, error.start - before.rfind(b"\n"))
        message = f"not UTF-8: byte {raw[error.start]:#04x}; save the file as UTF-8"
        raise ConfigError([Problem("", message, place)]) from error


def unreadable(path: Path, error: Exception, named: bool) -> str:
    """Why a file cannot be read."""
    what = f" {str(path)!r}" if named else ""
    if isinstance(error, FileNotFoundError):
        siblings = [sibling.name for sibling in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        near = words.nearest(path.name, siblings)
        hint = f"; did you mean {str(path.with_name(near))!r}?" if near else ""
        return f"there is no file{what or ' of this name'}{hint}"
    if isinstance(error, IsADirectoryError):
        return f"{what.strip() + ' ' if what else ''}is a folder; give the TOML file in it"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot read{what or ' this file'}: {reason.lower()}"


def parsed(text: str, file: str) -> dict[str, Any]:
    """The tree of a TOML text; raises ConfigError with tomllib's own words and a caret."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([syntax(text, file, str(error))]) from error
    except RecursionError as error:
        raise ConfigError([Problem("", "lists or tables are nested too deep", Place(file, 1, 1))]) from error
    except ValueError as error:  # a number of thousands of digits, which Python refuses to read
        raise ConfigError([Problem("", str(error).partition(";")[0], Place(file, 1, 1))]) from error


def syntax(text: str, file: str, message: str) -> Problem:
    """The problem of a text that is not TOML."""
    lines = Lines(text, file)
    position = POSITION.search(message)
    reason = message[: position.start()] if position else message
    if position and position[1]:
        starts = [0, *(match.end() for match in re.finditer("\n", text))]
        offset = starts[int(position[1]) - 1] + int(position[2]) - 1
    else:
        offset = len(text.rstrip())
    if reason.startswith(TWICE):
        twin = repeated(text, offset)
        if twin is not None:
            first, again = twin
            line = lines.place(first.start, first.end).line
            where = f"{dotted(again.keys)} is written twice; first on line {line}"
            return Problem("", where, lines.place(again.start, again.end))
    return Problem("", f"not TOML: {reason[:1].lower()}{reason[1:]}", lines.place(offset, offset + 1))


def repeated(text: str, offset: int) -> tuple[Span, Span] | None:
    """The key that is written for a second time in the line of an offset, after its first writing."""
    end = text.find("\n", offset)
    seen: dict[Keys, Span] = {}
    twin = None
    try:
        for span in Scanner(text[: end if end >= 0 else len(text)] + "\n").document():
            if span.keys in seen and not span.implied:
                twin = seen[span.keys], span
            seen.setdefault(span.keys, span)
    except (ValueError, IndexError):  # the text is broken, so the scanner may stumble
        return None
    return twin


def excesses(tree: dict[str, Any]) -> Iterator[tuple[Keys, str]]:
    """Values that TOML writers or our own recursion cannot bear: very deep ones, and very long integers."""
    waiting: list[tuple[Keys, Any]] = [((), tree)]
    while waiting:
        keys, value = waiting.pop()
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            yield keys, "integers have at most 64 bits"
        if len(keys) > DEEPEST:
            yield keys, f"nested more than {DEEPEST} deep"
        else:
            waiting += [((*keys, key), inner) for key, inner in inside]
