"""Sentences about names, the nearest one or all of them, as every message has that refuses one; and text in columns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one known name that `name` was probably meant to be, or None."""
    found = get_close_matches(name, list(names), n=1, cutoff=0.6)
    return found[0] if found else None


def hint(name: str, names: Iterable[str]) -> str:
    """`did you mean 'x'?` if something is near, else `one of: a, b, c`; `there are none` without names."""
    known = sorted(set(names))
    near = nearest(name, known)
    if near is not None:
        return f"did you mean {near!r}?"
    return f"one of: {', '.join(known)}" if known else "there are none"


def several(items: Iterable[object], *, most: int = 6) -> str:
    """`a, b, c` and, past `most` items, ` ... and 4 more`."""
    shown = [str(item) for item in items]
    rest = len(shown) - most
    return ", ".join(shown[:most]) + (f" ... and {rest} more" if rest > 0 else "")


def nearby(name: str, names: Iterable[str]) -> str:
    """`did you mean 'x'?`, or how many names there are: for lists too long to print."""
    known = sorted(set(names))
    near = nearest(name, known)
    return f"did you mean {near!r}?" if near else f"none of its {len(known)} names is near"


def aligned(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> list[str]:
    """Lines whose cells stand below each other; right: the columns that are flush with it, as numbers are."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def cell(place: int, text: str) -> str:
        return text.rjust(widths[place]) if place in right else text.ljust(widths[place])

    return ["  ".join(cell(place, text) for place, text in enumerate(row)).rstrip() for row in rows]
