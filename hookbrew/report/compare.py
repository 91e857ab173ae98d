"""Runs beside one another: the numbers that they came to, and what their configurations differ in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import attrs

from hookbrew.config import inline, settings
from hookbrew.report.curves import Curve, best, curves, falls
from hookbrew.report.read import Part, Run
from hookbrew.report.weights import Weights

SPEED = "samples_per_second"


@attrs.frozen
class Column:
    """A number that is compared."""

    name: str
    falling: bool
    """Whether the lowest is the best."""


@attrs.frozen
class Cell:
    """What a run came to in one column."""

    last: float | None
    best: tuple[int, float] | None
    """The step, and the number."""
    first: bool = False
    """Whether no other run is better."""


@attrs.frozen
class Row:
    """A run, or a stage of one."""

    run: int
    stage: str
    """'' of a whole run."""
    status: str
    steps: int
    speed: float | None
    """Samples a second, the median of the rows."""
    weights: Weights | None
    cells: Mapping[str, Cell]


def columns(runs: Sequence[Run]) -> list[Column]:
    """What is compared: evaluations first, then losses."""
    names = dict.fromkeys(name for run in runs for name in curves(run))
    found = [Column(name, falling) for name in names if (falling := falls(name)) is not None]
    return sorted(found, key=lambda column: not column.name.startswith("eval/"))


def compared(runs: Sequence[Run]) -> list[Row]:
    """A row for each run, and below it one for each of its stages."""
    wanted = columns(runs)
    rows = []
    for number, run in enumerate(runs):
        rows.append(row(number, run, run.parts[-1], curves(run), wanted))
        for place, part in enumerate(run.parts if run.staged else ()):
            rows.append(row(number, run, part, curves(run, only=place), wanted, stage=part.name))
    return [*crowned(rows, wanted)]


def row(
    number: int, run: Run, part: Part, drawn: Mapping[str, Curve], wanted: Sequence[Column], *, stage: str = ""
) -> Row:
    """One row; the student is the one that the part saved."""
    speeds = [value for _, value in drawn[SPEED].finite] if SPEED in drawn else []
    status = part.status if stage else run.status
    return Row(
        run=number,
        stage=stage,
        status=str(status.get("status", "unknown")),
        steps=part.steps if stage else run.steps,
        speed=median(speeds) if speeds else None,
        weights=part.final,
        cells={
            column.name: Cell(curve.last, best(column.name, curve))
            for column in wanted
            if (curve := drawn.get(column.name))
        },
    )


def crowned(rows: Sequence[Row], wanted: Sequence[Column]) -> Iterator[Row]:
    """The rows, with the best whole run of each evaluation marked if there are several.

    Losses are left out: with other weights or temperatures, a lower one is not a better one.
    """
    tops: dict[str, float] = {}
    for column in (column for column in wanted if column.name.startswith("eval/")):
        cells = [row.cells[column.name] for row in rows if not row.stage and column.name in row.cells]
        values = [cell.best[1] for cell in cells if cell.best is not None]
        if len(values) > 1:
            tops[column.name] = min(values) if column.falling else max(values)
    for row in rows:
        top = {} if row.stage else tops
        marked = {
            name: attrs.evolve(cell, first=name in top and cell.best is not None and cell.best[1] == top[name])
            for name, cell in row.cells.items()
        }
        yield attrs.evolve(row, cells=marked)


def differences(trees: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str | None]]]:
    """The keys in which configurations differ, each with its value in every one; None where one has no such key."""
    flat = [{key: inline(value) for key, value in settings(tree).items()} for tree in trees]
    every = dict.fromkeys(key for table in flat for key in table)
    found = [(key, [table.get(key) for table in flat]) for key in every]
    return [(key, values) for key, values in found if len(set(values)) > 1]
