"""The page: one HTML file that needs nothing else, neither a network nor a script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs

from hookbrew.errors import HookbrewError
from hookbrew.report import head
from hookbrew.report.compare import columns, compared, differences
from hookbrew.report.curves import Curve, best, curves, falls, grouped, shown, steady, stretches, unit
from hookbrew.report.files import MARK
from hookbrew.report.pictures import pictured
from hookbrew.report.plot import COLOURS, MOST, PATTERNS, Plot, drawn, require
from hookbrew.report.read import Run
from hookbrew.words import several


@attrs.frozen
class Figure:
    """A plot with its words."""

    name: str
    words: str
    """What the lines come to, for those who do not see them."""
    lost: str
    """Where numbers were not finite, or ''."""
    svg: Any


def page(runs: Sequence[Run]) -> str:
    """The HTML of one run, or of several over one another.

    Raises HookbrewError where what it is made with is missing, or for more runs than can be told apart.
    """
    require()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if len(runs) > MOST:
        raise HookbrewError(f"a report shows up to {MOST} runs, whose lines can be told apart; got {len(runs)}")
    engine = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # every name may come from a file
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters.update(shown=shown, size=head.size)
    text = engine.get_template("page.html").render(
        mark=MARK,
        version=version("hookbrew"),
        made=head.clock(datetime.now(UTC)),
        runs=runs,
        head=head,
        sections=list(sections(runs)),
        columns=columns(runs),
        rows=compared(runs),
        differing=differences([run.tree or {} for run in runs]) if len(runs) > 1 else None,
        pictures=[pictured(run) for run in runs],
        line=lambda run: {"colour": f"var(--c{run % COLOURS})", "pattern": PATTERNS[run % len(PATTERNS)]},
    )
    return text.encode("utf-8", "replace").decode("utf-8")  # the name of a file may be no text


def sections(runs: Sequence[Run]) -> Iterator[tuple[str, list[Figure], list[tuple[str, str]]]]:
    """Each group of curves: its name, its plots, and what stayed the same all the time with its number."""
    from markupsafe import Markup

    every = [curves(run) for run in runs]
    groups = grouped(dict.fromkeys(name for found in every for name in found))
    plans, settled = list[tuple[str, Plot]](), list[tuple[str, str, str]]()
    for group, names in groups.items():
        lines = {name: {i: found[name] for i, found in enumerate(every) if name in found} for name in names}
        still = {*steady(group, {name: [*found.values()] for name, found in lines.items()})}
        settled += [(group, name, shown(next(iter(lines[name].values())).last)) for name in names if name in still]
        spread = group in ("Losses", "Gradient and speed")
        plans += [(group, planned(name, lines[name], runs, spread)) for name in names if name not in still]
    pictures = drawn([plot for _, plot in plans])
    figures = [(group, figure(plot, runs, Markup(svg))) for (group, plot), svg in zip(plans, pictures, strict=True)]
    for group in groups:
        yield (
            group,
            [made for where, made in figures if where == group],
            [(name, value) for where, name, value in settled if where == group],
        )


def planned(name: str, lines: Mapping[int, Curve], runs: Sequence[Run], spread: bool) -> Plot:
    """The plot of one number; stages are drawn where those of all runs are the same."""
    layouts = [stretches(run) for run in runs]
    same = all(layout == layouts[0] for layout in layouts) and runs[0].staged
    span = max(run.steps for run in runs)
    return Plot(name, unit(name), lines, span, layouts[0] if same else (), spread)


def figure(plot: Plot, runs: Sequence[Run], svg: Any) -> Figure:
    """A plot with its words: of one run without its name."""
    told, lost = [], []
    for number, curve in plot.curves.items():
        before = f"{runs[number].label}: " if len(runs) > 1 else ""
        told.append(before + came_to(plot.name, curve))
        if curve.lost:
            lost.append(f"{before}not finite at step{'s' * (len(curve.lost) > 1)} {several(curve.lost)}")
    return Figure(plot.name, "; ".join(told), "; ".join(lost), svg)


def came_to(name: str, curve: Curve) -> str:
    """`last 0.71, lowest 0.60 at step 12`."""
    last, top = f"last {shown(curve.last)}", best(name, curve)
    if top is None:
        return last
    return f"{last}, {'lowest' if falls(name) else 'highest'} {shown(top[1])} at step {top[0]:,}"
