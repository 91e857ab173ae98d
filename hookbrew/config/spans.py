"""Where every key stands in a TOML text, which tomllib does not say.

The text has been parsed before, so it is known to be valid: this only tells keys, brackets, strings and
comments apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import attrs

from hookbrew.config.keys import Keys, bare
from hookbrew.errors import Place

BLANK = re.compile(r"[ \t]*")
GAP = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
NAME = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*'""")
LONG = re.compile(r""""{3}(?:[^\\]|\\.)*?"{3,5}|\'{3}.*?\'{3,5}""", re.DOTALL)
SHORT = re.compile(r"""'[^'\n]*'|"(?:[^"\\\n]|\\.)*"|[^,\]}#\n]+""")


@attrs.frozen
class Span:
    """A key, or an item of a list, and the characters from `start` to `end` that name it."""

    keys: Keys
    start: int
    end: int
    implied: bool = False
    """Whether this table is only passed through: `a` in `a.b = 1`."""


def locate(text: str, file: str) -> dict[Keys, Place]:
    """The place of each key, table and list item of a valid TOML text without carriage returns."""
    places: dict[Keys, Place] = {}
    said = set[Keys]()
    lines = Lines(text, file)
    for span in Scanner(text).document():
        if span.keys not in places or not (span.implied or span.keys in said):
            places[span.keys] = lines.place(span.start, span.end)
        if not span.implied:
            said.add(span.keys)
    return places


class Lines:
    """Turns offsets of a text into lines and columns."""

    def __init__(self, text: str, file: str) -> None:
        self.text, self.file = text, file

    def place(self, start: int, end: int) -> Place:
        """The place of the characters from start to end, cut at the end of their first line."""
        begin = self.text.rfind("\n", 0, start) + 1
        stop = self.text.find("\n", begin)
        line = self.text[begin : stop if stop >= 0 else len(self.text)]
        number = self.text.count("\n", 0, start) + 1
        return Place(self.file, number, start - begin + 1, line, max(1, min(end, begin + len(line)) - start))


class Scanner:
    """One pass over the statements of a text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.counts: dict[Keys, int] = {}
        """How many `[[headers]]` each list of tables had so far."""

    def document(self) -> Iterator[Span]:
        """The spans of all statements, in the order of the text."""
        table: Keys = ()
        while self.skip(GAP) < len(self.text):
            if self.text[self.at] == "[":
                *outer, header = self.header()
                table = header.keys
                yield from outer
                yield header
            else:
                yield from self.pair(table)

    def skip(self, pattern: re.Pattern[str]) -> int:
        """Go past what the pattern matches; the new position."""
        match = pattern.match(self.text, self.at)
        if match is None:
            raise ValueError(f"not TOML at {self.at}")
        self.at = match.end()
        return self.at

    def names(self) -> Iterator[tuple[str, int]]:
        """The parts of a dotted key, each with its end."""
        while True:
            self.skip(BLANK)
            start = self.at
            end = self.skip(NAME)
            yield bare(self.text[start:end]), end
            self.skip(BLANK)
            if self.text[self.at] != ".":
                return
            self.at += 1

    def header(self) -> list[Span]:
        """`[table]` or `[[table]]`: the tables it passes through, then itself."""
        start = self.at
        many = self.text.startswith("[[", start)
        self.at += 2 if many else 1
        parts = [name for name, _ in self.names()]
        self.at += 2 if many else 1
        keys: Keys = ()
        spans = []
        for depth, name in enumerate(parts, 1):
            keys = (*keys, name)
            if depth == len(parts) and many:
                self.counts[keys] = self.counts.get(keys, 0) + 1
            spans.append(Span(keys, start, self.at, depth < len(parts) or many))
            if keys in self.counts:
                keys = (*keys, self.counts[keys] - 1)
                spans.append(Span(keys, start, self.at, depth < len(parts)))
        return spans

    def pair(self, table: Keys) -> Iterator[Span]:
        """`key = value`: the key, and what is inside the value."""
        start = self.at
        keys = table
        parts = list(self.names())
        for depth, (name, end) in enumerate(parts, 1):
            keys = (*keys, name)
            yield Span(keys, start, end, depth < len(parts))
        self.at += 1  # the equals sign
        yield from self.value(keys)

    def value(self, keys: Keys) -> Iterator[Span]:
        """Go past a value; gives the spans of the keys and items inside it."""
        self.skip(BLANK)
        sign = self.text[self.at]
        if sign == "[":
            yield from self.array(keys)
        elif sign == "{":
            yield from self.inline(keys)
        else:
            self.skip(LONG if LONG.match(self.text, self.at) else SHORT)

    def array(self, keys: Keys) -> Iterator[Span]:
        """Go past a list; each item has a span."""
        self.at += 1
        index = 0
        while self.text[self.skip(GAP)] != "]":
            if self.text[self.at] == ",":
                self.at += 1
                continue
            start = self.at
            inside = list(self.value((*keys, index)))
            yield Span((*keys, index), start, start + len(self.text[start : self.at].rstrip()))
            yield from inside
            index += 1
        self.at += 1

    def inline(self, keys: Keys) -> Iterator[Span]:
        """Go past a table in braces."""
        self.at += 1
        while self.text[self.skip(GAP)] != "}":
            if self.text[self.at] == ",":
                self.at += 1
            else:
                yield from self.pair(keys)
        self.at += 1
