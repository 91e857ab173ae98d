"""The table of a comparison: a line for each number, a column for each model; for the terminal, and to be pasted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hookbrew.compare.result import Comparison, Measured
from hookbrew.compare.speed import Speed, Spread
from hookbrew.report.head import size
from hookbrew.words import aligned

Line = tuple[str, list[str]]
"""What it is called, and a cell for each model."""
UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"))


def lines(found: Comparison) -> list[Line]:
    """The lines in their order; one that no model has a number for is left out."""
    return [(name, cells) for name, cells in every(found) if any(cell != "-" for cell in cells)]


def every(found: Comparison) -> Iterator[Line]:
    """All lines."""
    first = found.models[0]
    yield measured(found, "parameters", lambda one: one.parameters, large)
    yield measured(found, "size on disk", lambda one: one.disk, lambda value: size(int(value)))
    yield measured(found, "FLOPs / sample", lambda one: one.flops, large)
    for place, batch in enumerate(found.sizes):
        yield f"latency, batch {batch}", [latency(one.speeds[place]) for one in found.models]
    for place, batch in enumerate(found.sizes):
        yield measured(found, f"samples / s, batch {batch}", lambda one, at=place: one.speeds[at].throughput, figures)
    for place, batch in [*enumerate(found.sizes)][-1:]:
        name = f"peak memory, batch {batch}"
        yield measured(found, name, lambda one, at=place: memory(one, at), lambda value: size(int(value)))
    for name in ("accuracy", "loss", "perplexity", "ece"):
        called = {"ece": "calibration error (ECE)"}.get(name, name)
        yield called, [number(getattr(one.quality, name)) for one in found.models]
    if len(found.models) > 1:
        yield f"agreement with {first.name}", [number(one.quality.agreement) for one in found.models]
        last = [one.similarity.last if one.similarity else None for one in found.models]
        yield f"CKA of the last layer with {first.name}'s", [number(value) for value in last]


def measured(found: Comparison, name: str, value: Callable[..., float | None], written: Callable[[float], str]) -> Line:
    """A line whose numbers are compared with the first model's: `4.02 M (0.18x)`."""
    whole = value(found.models[0])
    cells = []
    for place, one in enumerate(found.models):
        own = value(one)
        ratio = f" ({times(own / whole)})" if place and own is not None and whole else ""
        cells.append("-" if own is None else written(own) + ratio)
    return name, cells


def memory(one: Measured, place: int) -> int:
    """Bytes of the weights, with the most that a forward has besides."""
    return one.weights + one.speeds[place].memory


def latency(speed: Speed) -> str:
    """`1.93 ms (0.25x, 0.24..0.26)`: the median, and its ratio with where the true one lies."""
    told = milliseconds(speed.latency.middle)
    return told if speed.ratio is None else f"{told} ({ranged(speed.ratio)})"


def ranged(ratio: Spread) -> str:
    """`0.25x, 0.24..0.26`."""
    low, high = (times(value).removesuffix("x") for value in (ratio.low, ratio.high))
    return f"{times(ratio.middle)}, {low}..{high}"


def milliseconds(seconds: float) -> str:
    """`1.93 ms`."""
    return f"{figures(1000 * seconds)} ms"


def times(ratio: float) -> str:
    """`0.25x`."""
    return f"{figures(ratio, 2 if ratio < 10 else 3)}x"


def figures(value: float, digits: int = 3) -> str:
    """A number of so many figures, without an exponent where it can be: `1,930`, `0.0193`."""
    if not value or not math.isfinite(value):
        return f"{value:.0f}"
    after = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, after)}f}" if after < 7 else f"{value:.{digits - 1}e}"


def large(value: float) -> str:
    """`22.7 M`; a small number is written out."""
    for unit, letter in UNITS:
        if value >= unit / 10:
            return f"{value / unit:,.2f} {letter}"
    return f"{value:,.0f}"


def number(value: float | None) -> str:
    """A share or a loss, in four figures; `-` for none."""
    return "-" if value is None else f"{value:.4f}" if abs(value) < 100 else f"{value:,.4g}"


def text(found: Comparison) -> str:
    """The table in plain text."""
    rows = [["", *(one.name for one in found.models)], *([name, *cells] for name, cells in lines(found))]
    return "\n".join([*aligned(rows, right=range(1, len(rows[0]))), "", *under(found)])


def markdown(found: Comparison) -> str:
    """The table as GitHub and others show it."""
    head = ["", *(one.name for one in found.models)]
    rows: list[Sequence[str]] = [head, [":--", *["--:"] * len(found.models)]]
    rows += [[name, *cells] for name, cells in lines(found)]
    table = ["| " + " | ".join(map(escaped, row)) + " |" for row in rows]
    return "\n".join([*table, "", "  \n".join(map(escaped, under(found)))])


def escaped(cell: str) -> str:
    """Text that is no sign of the table."""
    return "".join(f"\\{sign}" if sign in "|*_`<>[]\\" else sign for sign in cell)


def terminal(found: Comparison) -> Any:
    """The table for a terminal."""
    from rich.table import Table
    from rich.text import Text

    made = Table(caption=Text("\n".join(under(found))), caption_justify="left", header_style="bold")
    made.add_column("")
    for one in found.models:
        made.add_column(Text(one.name), justify="right")
    for name, cells in lines(found):
        made.add_row(Text(name), *map(Text, cells))
    return made


def under(found: Comparison) -> list[str]:
    """What has to be known of the numbers."""
    facts = found.facts
    part = "" if facts["whole"] else f", the first {facts['batches']:,} batches"
    data = f" of {facts['data']}" if facts.get("data") else ""
    where = f"{facts['device']}, {facts['threads']} thread{'s' * (facts['threads'] != 1)}, {facts['precision']}"
    told = [f"{found.samples:,} samples{data}{part}; {where}; torch {facts['torch']}, {facts['date']}"]
    if found.sizes:
        first = found.models[0].name
        ratio = f"; in brackets the ratio to {first}, with the 95 % interval of its median" * (len(found.models) > 1)
        told.append(f"latency: median of {facts['rounds']} rounds, models in turn{ratio}")
    return [*told, *(f"note: {note}" for note in found.notes)]
