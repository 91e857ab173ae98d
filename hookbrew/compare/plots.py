"""The plots of a comparison as SVG: speed, memory, quality, calibration; a model has one colour and pattern."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from hookbrew.compare.result import Comparison
from hookbrew.compare.table import milliseconds, number
from hookbrew.report.head import size
from hookbrew.report.plot import COLOURS, INK, dashes, finished, sheet, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAR = 8
"""Numbers whose largest is so many times the smallest are drawn on a logarithmic axis."""
DOTS = 160
"""The area of the largest dot of a calibration, in points squared."""


@attrs.frozen
class Drawing:
    """A plot with its words."""

    name: str
    words: str
    """What there is to see, also for those who do not see it."""
    svg: str


Draw = Callable[["Axes", Comparison], tuple[str, str]]
"""Draws, and gives a name and words."""


def plotted(found: Comparison) -> Iterator[Drawing]:
    """The plots for which there are numbers; raises nothing where there are none."""
    draws: list[Draw] = []
    if found.sizes:
        draws += [against] if len(found.models) > 1 and judged(found) else []
        draws += [latency, throughput, memory]
    if found.models[0].quality.labelled:
        draws.append(calibration)
    with styled():
        for place, draw in enumerate(draws):
            figure = sheet()
            name, words = draw(figure.add_subplot(), found)
            yield Drawing(name, words, finished(figure, place))


def judged(found: Comparison) -> str:
    """The number by which models are judged: accuracy, or the loss of models of language; '' without labels."""
    first = found.models[0].quality
    if first.labelled:
        return "accuracy" if first.perplexity is None else "perplexity"
    return ""


def against(axes: Axes, found: Comparison) -> tuple[str, str]:
    """Quality over latency at the smallest batch: a point for each model."""
    which, batch = judged(found), found.sizes[0]
    told = []
    for place, one in enumerate(found.models):
        latency, value = one.speeds[0].latency, getattr(one.quality, which)
        x, low, high = (1000 * part for part in (latency.middle, latency.low, latency.high))
        axes.errorbar(x, value, xerr=[[x - low], [high - x]], color=colour(place), marker="o", markersize=7)
        told.append(f"{one.name} {number(value)} at {milliseconds(latency.middle)}")
    scaled(axes, "x", [1000 * one.speeds[0].latency.middle for one in found.models])
    axes.margins(0.15)
    axes.set_xlabel(f"ms, batch {batch}{' (log)' * (axes.get_xscale() == 'log')}")
    axes.set_ylabel(which)
    return f"{which.capitalize()} and latency", "; ".join(told)


def latency(axes: Axes, found: Comparison) -> tuple[str, str]:
    """Milliseconds over batch size, with the interval of the median."""
    for place, one in enumerate(found.models):
        middle = [1000 * speed.latency.middle for speed in one.speeds]
        spread = [
            [1000 * (speed.latency.middle - speed.latency.low) for speed in one.speeds],
            [1000 * (speed.latency.high - speed.latency.middle) for speed in one.speeds],
        ]
        style = {"color": colour(place), "linestyle": dashes(place), "marker": "o", "capsize": 3}
        axes.errorbar(range(len(middle)), middle, yerr=spread, **style)
    scaled(axes, "y", [1000 * speed.latency.middle for one in found.models for speed in one.speeds])
    ticked(axes, found, "ms")
    told = [f"{one.name} {listed(milliseconds(speed.latency.middle) for speed in one.speeds)}" for one in found.models]
    return "Latency", "; ".join(told)


def throughput(axes: Axes, found: Comparison) -> tuple[str, str]:
    """Samples a second over batch size."""
    for place, one in enumerate(found.models):
        values = [speed.throughput for speed in one.speeds]
        axes.plot(range(len(values)), values, color=colour(place), linestyle=dashes(place), marker="o")
    scaled(axes, "y", [speed.throughput for one in found.models for speed in one.speeds])
    ticked(axes, found, "samples / s")
    told = [f"{one.name} {listed(f'{speed.throughput:,.0f}' for speed in one.speeds)}" for one in found.models]
    return "Throughput", "; ".join(told)


def memory(axes: Axes, found: Comparison) -> tuple[str, str]:
    """Weights, and above them the most that a forward has besides, in bars."""
    wide = 0.8 / len(found.models)
    unit, word = scale(max(one.weights + speed.memory for one in found.models for speed in one.speeds))
    told = []
    for place, one in enumerate(found.models):
        places = [at + (place - (len(found.models) - 1) / 2) * wide for at in range(len(one.speeds))]
        axes.bar(places, [one.weights / unit] * len(places), wide * 0.92, color=colour(place))
        more = [speed.memory / unit for speed in one.speeds]
        axes.bar(places, more, wide * 0.92, bottom=one.weights / unit, color=colour(place), alpha=0.45)
        peaks = listed(size(one.weights + speed.memory) for speed in one.speeds)
        told.append(f"{one.name} {peaks}, weights {size(one.weights)}")
    ticked(axes, found, word)
    return "Peak memory", f"below, the weights; lighter, what a forward needs: {'; '.join(told)}"


def calibration(axes: Axes, found: Comparison) -> tuple[str, str]:
    """Accuracy over confidence, a dot for each bin, as large as its share of the places."""
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
    told = []
    for place, one in enumerate(found.models):
        bins = [each for each in one.quality.bins if each.count]
        x, y = [each.confidence for each in bins], [each.accuracy for each in bins]
        axes.plot(x, y, color=colour(place), linestyle=dashes(place), linewidth=1)
        areas = [6 + DOTS * each.count / max(1, one.quality.labelled) for each in bins]
        axes.scatter(x, y, areas, color=colour(place), alpha=0.75, linewidths=0)
        told.append(f"{one.name} {number(one.quality.ece)}")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(-0.03, 1.05)
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    return "Calibration", f"expected calibration error: {'; '.join(told)}"


def ticked(axes: Axes, found: Comparison, unit: str) -> None:
    """Batch sizes below, and what stands at the left."""
    axes.set_xticks(range(len(found.sizes)), [f"{size:,}" for size in found.sizes])
    axes.set_xlim(-0.5, len(found.sizes) - 0.5)
    axes.set_xlabel("batch size")
    axes.set_ylabel(f"{unit} (log)" if axes.get_yscale() == "log" else unit)


def scaled(axes: Axes, which: str, values: Sequence[float]) -> None:
    """An axis that is logarithmic if its numbers are far apart, and begins at 0 if they are not."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis: Any = axes.xaxis if which == "x" else axes.yaxis
    if 0 < FAR * min(values) < max(values):
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        close = max(values) < 100 * min(values)
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if close else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_formatter(NullFormatter())
        axis.set_tick_params(which="minor", length=0)
    else:
        (axes.set_xlim if which == "x" else axes.set_ylim)(0, 1.15 * max(values))


def scale(most: float) -> tuple[float, str]:
    """The unit in which the largest of some sizes is written, in bytes, and its name."""
    for unit, word in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if most >= unit:
            return float(unit), word
    return 1.0, "bytes"


def colour(place: int) -> str:
    """A stand-in for the colour of the page."""
    return f"#fe01{place % COLOURS:02x}"


def listed(values: Iterator[str]) -> str:
    """`1 ms, 2 ms and 3 ms`."""
    *most, last = values
    return f"{', '.join(most)} and {last}" if most else last
