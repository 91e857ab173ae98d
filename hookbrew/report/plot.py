"""Curves as SVG that stands in a page: one number a plot, one line a run.

Colours are variables of the page, so that one drawing serves light, dark and paper; a run has a colour and a pattern
of its own, so that neither is needed alone. Text stays text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs

from hookbrew.errors import HookbrewError
from hookbrew.report.curves import Curve, Stretch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS, PATTERNS = 7, ("", "6 2", "2 2", "8 2 2 2")
MOST = COLOURS * len(PATTERNS)
"""So many runs can be told apart: 7 and 4 have no common divisor, so colour and pattern both change each time."""

INK, FAINT = "#fe0280", "#fe0281"
STAND_INS = {INK: "var(--ink)", FAINT: "var(--line)"} | {f"#fe01{i:02x}": f"var(--c{i})" for i in range(COLOURS)}
"""Colours that no drawing needs, for the variables that replace them."""

SIZE = (4.6, 2.5)
LETTER = 0.017
"""The width of a letter of a stage's name, as a share of the plot's."""
FAR = 1e100
"""Matplotlib cannot lay out an axis that goes much further; what lies beyond is drawn here."""
DOTTED = 60
"""Up to so many points, each has a dot."""
WIDE = 50
"""A loss whose highest number is so many times its lowest is drawn on a logarithmic axis."""

SETTINGS: Any = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "text.color": INK,
    "text.parse_math": False,  # a name may have a dollar in it
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
}


@attrs.frozen
class Plot:
    """What one drawing shows."""

    name: str
    unit: str
    """What stands at the vertical axis."""
    curves: Mapping[int, Curve]
    """By the number of the run."""
    span: int
    """The last step of all runs: plots of a page share their horizontal axis."""
    stages: Sequence[Stretch] = ()
    """Drawn if all runs have the same."""
    spread: bool = False
    """Whether the axis may be logarithmic."""

    @property
    def logarithmic(self) -> bool:
        """Whether it is: all numbers are above 0 and far apart."""
        values = [value for curve in self.curves.values() for _, value in curve.finite]
        return self.spread and bool(values) and 0 < min(values) * WIDE < max(values)


def drawn(plots: Sequence[Plot]) -> list[str]:
    """One SVG for each plot; raises HookbrewError where matplotlib is missing."""
    require()
    with styled():
        return [draw(plot, number) for number, plot in enumerate(plots)]


@contextmanager
def styled() -> Iterator[None]:
    """Drawings look alike inside: what a user's own file says of fonts or backends would spoil the page."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


def require() -> None:
    """Raise HookbrewError unless what the page is made with is there."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        name = error.name or "matplotlib"
        raise HookbrewError(f'a report needs {name}, which is not installed: pip install "hookbrew[report]"') from error


def draw(plot: Plot, number: int) -> str:
    """One SVG; number: another one for each drawing of a page."""
    figure = sheet()
    axes = figure.add_subplot()
    scaled(axes, plot)
    for place, (run, curve) in enumerate(plot.curves.items()):
        line(axes, run, curve)
        crosses(axes, run, curve, 0.04 + 0.06 * (place % 8))
    boundaries(axes, plot)
    return finished(figure, number)


def sheet() -> Figure:
    """An empty drawing."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def finished(figure: Figure, number: int) -> str:
    """A drawing as SVG: its ids are of the whole page, and the same each time."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = str(number)
    text = io.StringIO()
    bare = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(text, format="svg", transparent=True, metadata=bare)
    return embedded(text.getvalue())


def scaled(axes: Axes, plot: Plot) -> None:
    """The two axes with their labels."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, ScalarFormatter

    axes.set_xlabel("step")
    axes.set_xlim(0, max(1, plot.span) * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if plot.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    axes.set_ylabel(f"{plot.unit} (log)" if plot.logarithmic else plot.unit)
    if not any(curve.finite for curve in plot.curves.values()):
        axes.set_yticks([])


def line(axes: Axes, run: int, curve: Curve) -> None:
    """The line of a run, broken between stages and where a number was not finite; a point alone has a dot."""
    colour, pattern = f"#fe01{run % COLOURS:02x}", dashes(run)
    for piece in curve.pieces:
        steps = [step for step, _ in piece]
        values = [float("nan") if value is None else min(max(value, -FAR), FAR) for _, value in piece]
        (made,) = axes.plot(steps, values, color=colour, linestyle=pattern)
        there = [value is not None for _, value in piece]
        alone = [
            index
            for index in range(len(piece))
            if there[index] and not any(there[max(0, index - 1) : index]) and not any(there[index + 1 : index + 2])
        ]
        dots = range(len(piece)) if len(curve.points) <= DOTTED else alone
        made.set_marker("o" if dots else "")
        made.set_markevery(list(dots) or None)


def crosses(axes: Axes, run: int, curve: Curve, height: float) -> None:
    """A cross near the bottom for each number that was not finite."""
    if curve.lost:
        colour = f"#fe01{run % COLOURS:02x}"
        heights = [height] * len(curve.lost)
        axes.plot(
            curve.lost, heights, "x", color=colour, markersize=6, transform=axes.get_xaxis_transform(), clip_on=False
        )


def dashes(run: int) -> Any:
    """A run's pattern of line, as matplotlib takes it."""
    pattern = PATTERNS[run % len(PATTERNS)]
    return (0, tuple(float(part) / 1.6 for part in pattern.split())) if pattern else "solid"


def boundaries(axes: Axes, plot: Plot) -> None:
    """A line between stages, and above it their names, or numbers where they have no room."""
    stages = [stage for stage in plot.stages if stage.stop > stage.start]
    room = all((s.stop - s.start) / max(1, plot.span) > LETTER * (len(s.name) + 1) for s in stages)
    for number, stage in enumerate(stages, 1):
        if stage is not stages[-1]:
            axes.axvline(stage.stop, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
        where = ((stage.start + stage.stop) / 2, 1.02)
        text = stage.name if room else str(number)
        axes.text(*where, text, transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=8)


def embedded(svg: str) -> str:
    """The drawing without what a file of its own needs; it is as wide as its place, and reads its colours there."""
    svg = svg[svg.index("<svg") :]
    head, _, rest = svg.partition(">")
    (box,) = re.findall(r'viewBox="[^"]*"', head)
    rest = re.sub(r"<metadata>.*?</metadata>\s*", "", rest, flags=re.DOTALL)
    rest = re.sub(r"<style.*?</style>", "", rest, flags=re.DOTALL)  # it would hold for the whole page
    rest = re.sub(r'<g id="[^"]*"', "<g", rest)
    rest = re.sub(r" font-family: [^;]*;", "", rest)
    for stand_in, variable in STAND_INS.items():
        rest = rest.replace(stand_in, variable)
    return f'<svg {box} xmlns:xlink="http://www.w3.org/1999/xlink" aria-hidden="true" focusable="false">{rest}'
