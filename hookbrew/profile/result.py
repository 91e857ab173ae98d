"""What a profile found: parts of a step in milliseconds, as numbers, as JSON and as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

import attrs

from hookbrew.profile.ruler import APART, LOOP, Part
from hookbrew.words import aligned

ORDER = (
    "data",
    "augment",
    "to the device",
    "models",
    "losses",
    "backward",
    "gradients",
    "optimizer",
    "row of metrics",
    "callbacks",
    *LOOP[:1],
)
"""The groups, as they come in a step."""
LINES = 22
"""Rows of the table on a screen; the smallest parts of groups are joined to fit."""
WIDEST = 40
HEADER = ("", "ms a step", "median", "share")


@attrs.frozen
class Row:
    """One part, over all measured steps."""

    group: str
    name: str
    """Empty for a group that is one part, and for what is left of one."""
    mean: float
    """Milliseconds a step; those of all rows add up to the step."""
    median: float
    """Milliseconds of the step in the middle."""
    share: float
    """Of the step, 0 to 1."""


@attrs.frozen(kw_only=True)
class Result:
    """All that was measured of one training, or of one stage of it."""

    first: int
    """The first step that was measured part by part."""
    steps: int
    """How many were."""
    mean: float
    """Milliseconds of such a step, without what is apart from it."""
    median: float
    rows: Sequence[Row]
    apart: Mapping[str, tuple[int, float]]
    """Evaluations, checkpoints and ends of epochs that fell in: in how many steps, and all their milliseconds."""
    plain: tuple[int, float] | None
    """How many steps were timed as a whole, and the milliseconds of the one in the middle; None for none."""
    rate: float | None
    """Samples a second in those, of all processes together."""
    traced: tuple[int, int] | None = None
    """The first and the last step in the trace."""
    memory: Mapping[str, int] = attrs.field(factory=dict)
    """Bytes at most: `allocated` on a GPU meanwhile, `resident` of the process so far."""
    facts: Mapping[str, Any] = attrs.field(factory=dict)
    """Where it was measured."""

    def json(self) -> str:
        """All numbers."""
        return json.dumps(attrs.asdict(self), indent=2) + "\n"


def counted(measured: Sequence[tuple[float, Mapping[Part, float]]], first: int, **more: Any) -> Result:
    """The result of steps: the seconds of each, and those of its parts."""
    inside = [sum(value for part, value in parts.items() if part[0] not in APART) for _, parts in measured]
    whole = fmean(inside)
    found = dict.fromkeys(part for _, parts in measured for part in parts)
    rows = []
    for part in sorted(found, key=place):
        if part[0] not in APART:
            each = [parts.get(part, 0.0) for _, parts in measured]
            share = fmean(each) / whole if whole else 0.0
            rows.append(Row(*part, 1e3 * fmean(each), 1e3 * median(each), share))
    apart = {}
    for group in APART:
        each = [sum(v for part, v in parts.items() if part[0] == group) for _, parts in measured]
        if times := sum(map(bool, each)):
            apart[group] = (times, 1e3 * sum(each))
    middle = 1e3 * median(inside)
    return Result(first=first, steps=len(measured), mean=1e3 * whole, median=middle, rows=rows, apart=apart, **more)


def place(part: Part) -> tuple[int, str]:
    """Where a part stands among others."""
    group, name = part
    return ORDER.index(group) if group in ORDER else len(ORDER), name


def table(result: Result) -> list[tuple[str, ...]]:
    """The lines of the table, in cells: a group, then what it has in it, the largest first; small parts are joined."""
    groups: dict[str, list[Row]] = {}
    for row in result.rows:
        groups.setdefault(row.group, []).append(row)
    parts = [row for rows in groups.values() if several(rows) for row in rows]
    room = LINES - len(groups)
    shown = set(sorted(parts, key=lambda row: -row.mean)[: max(0, room)])
    lines = []
    for group, rows in groups.items():
        lines.append(cells(group, rows, result))
        if several(rows):
            inside = sorted(shown.intersection(rows), key=lambda row: -row.mean)
            lines += [cells(f"  {row.name or 'the rest'}", [row], result) for row in inside]
            if inside and (rest := [row for row in rows if row not in shown]):
                lines.append(cells(f"  {len(rest)} more", rest, result))
    lines.append(("a step", number(result.mean), number(result.median), "100.0 %"))
    return lines


def several(rows: Sequence[Row]) -> bool:
    """Whether a group is shown part by part."""
    return len(rows) > 1 or bool(rows[0].name)


def cells(name: str, rows: Sequence[Row], result: Result) -> tuple[str, ...]:
    """A line; of several rows the median is not known, for theirs do not add up."""
    middle = number(rows[0].median) if len(rows) == 1 else ""
    cut = name if len(name) <= WIDEST else f"{name[: WIDEST - 3]}..."
    share = sum(row.share for row in rows)
    return cut, number(sum(row.mean for row in rows)), middle, f"{100 * share:.1f} %"


def number(value: float) -> str:
    """Milliseconds, as `0.012`, `1.93`, `1,930`."""
    return f"{value:.3f}" if value < 1 else f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def above(result: Result) -> list[str]:
    """What is said before the table."""
    last = result.first + result.steps - 1
    where = ", ".join(str(result.facts[key]) for key in ("device", "precision") if key in result.facts)
    said = [f"profile of steps {result.first} to {last} on {where}"]
    if result.plain is not None:
        times, middle = result.plain
        rate = f", {result.rate:,.0f} samples/s" if result.rate else ""
        said.append(f"as it runs, evaluations too: {number(middle)} ms a step{rate} (median of {times})")
    return said


def below(result: Result) -> list[str]:
    """What is said after it."""
    said = [
        f"apart: {group} {number(spent)} ms in {times} of these steps" for group, (times, spent) in result.apart.items()
    ]
    if result.traced is not None:
        said.append(f"traced and not timed: steps {result.traced[0]} to {result.traced[1]}")
    if result.memory:
        kinds = {"allocated": "allocated on the device", "resident": "resident size of the process"}
        told = [f"{kinds[kind]} {size / 2**20:,.0f} MiB" for kind, size in result.memory.items()]
        said.append(f"at most: {', '.join(told)}")
    if result.facts.get("processes", 1) > 1:
        said.append("of the first process; where it waits for others, as in backward, that is in")
    return said


def text(result: Result) -> str:
    """The table in plain text."""
    rows = [HEADER, *table(result)]
    return "\n".join([*above(result), "", *aligned(rows, right=range(1, 4)), "", *below(result)]).rstrip()


def terminal(result: Result) -> Any:
    """The table for a terminal."""
    from rich.table import Table
    from rich.text import Text

    heading, caption = (Text("\n".join(lines)) for lines in (above(result), below(result)))
    made = Table(title=heading, caption=caption, title_justify="left", caption_justify="left", title_style="")
    for cell in HEADER:
        made.add_column(cell, justify="right" if cell else "left")
    *lines, last = table(result)
    for line in lines:
        made.add_row(*(Text(cell, style="dim" if line[0].startswith(" ") else "") for cell in line))
    made.add_section()
    made.add_row(*map(Text, last), style="bold")
    return made
