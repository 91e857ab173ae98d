"""The selector: one string that names modules, one of their calls, and a tensor of that call.

    spec  := path ['#' call] [':' port pick*]
    path  := seg ('.' seg)*            seg := name | glob (* ? {a,b}) | '**', followed by any number of [index]
    index := '*' | int | -int | a:b[:c] | comma list
    call  := int | -int | a:b[:c] | '*'
    port  := out (default) | in | args | kwargs | attn | scores | q | k | v
    pick  := .key | [i]

An empty path is the model itself: `:out.logits`. The alias `logits` is the model's output, `:out`; a child
that is called `logits` is written `logits:out`. The aliases `hidden[i]` and `attention[i]` stand for what a
probe of the model found (alias.py); after a path, for what it found there: `decoder.hidden[i]`. A model that
has children of these names has them, and not the aliases. parse.py reads a text, resolve.py looks at a model.
"""

from __future__ import annotations

import re
from typing import Final

import attrs

PORTS: Final = ("out", "in", "args", "kwargs", "attn", "scores", "q", "k", "v")
ALIAS: Final = "logits"
ALIASES: Final = ("hidden", "attention")
"""What a probe of the model gives a meaning, with an index."""

NAME: Final = r"[^.\[\]{}*?#:,\s]"


@attrs.frozen
class Range:
    """A slice in Python's sense; `*` is the slice of everything."""

    start: int | None = None
    stop: int | None = None
    step: int | None = None

    def slice(self) -> slice:
        """The Python object."""
        return slice(self.start, self.stop, self.step)

    def __str__(self) -> str:
        if self == Range():
            return "*"
        start, stop, step = ("" if part is None else str(part) for part in (self.start, self.stop, self.step))
        return f"{start}:{stop}" + (f":{step}" if step else "")


Index = int | Range | tuple[int, ...]


@attrs.frozen
class Segment:
    """What stands between two dots: a glob over the names of children, then indices into containers."""

    glob: str
    indices: tuple[Index, ...] = ()

    @property
    def many(self) -> bool:
        """Whether this is spelled so that it may match several modules."""
        return bool(set("*?{") & set(self.glob)) or any(not isinstance(index, int) for index in self.indices)

    def __str__(self) -> str:
        return self.glob + "".join(f"[{spelled(index)}]" for index in self.indices)


@attrs.frozen
class Selector:
    """A parsed selector. `str()` gives the canonical spelling, which parses to an equal selector."""

    path: tuple[Segment, ...] = ()
    call: int | Range | None = None
    port: str = "out"
    picks: tuple[str | int, ...] = ()

    @property
    def many(self) -> bool:
        """Whether a tap gives a list: decided by the spelling, never by how many modules matched."""
        return isinstance(self.call, Range) or any(segment.many for segment in self.path)

    @property
    def where(self) -> str:
        """The path alone, as text."""
        return ".".join(map(str, self.path))

    def __str__(self) -> str:
        call = "" if self.call is None else f"#{self.call}"
        port = self.port + chosen(self.picks)
        return self.where + call + ("" if port == "out" and self.where + call not in ("", ALIAS) else f":{port}")


def spelled(index: Index) -> str:
    """An index as it stands between brackets."""
    return ",".join(map(str, index)) if isinstance(index, tuple) else str(index)


def chosen(picks: tuple[str | int, ...]) -> str:
    """Picks as they stand after a port: `.logits`, `[1]`."""
    return "".join(f"[{pick}]" if isinstance(pick, int) else f".{pick}" for pick in picks)


def spell(name: str) -> str:
    """The name of a child as a selector has to write it: characters that mean something become `?`."""
    return "".join(letter if re.fullmatch(NAME, letter) else "?" for letter in name)
