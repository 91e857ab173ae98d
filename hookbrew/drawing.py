"""Maps of attention and of similarity as PNG files, drawn by matplotlib: its import waits for the first of them."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import attrs
from torch import Tensor

from hookbrew.errors import FolderError

__all__ = ["Picture", "Side", "attention", "similarity"]

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SETTINGS: Any = {"font.size": 9, "text.parse_math": False, "axes.titlesize": 9}
"""A name may have a dollar in it."""
COLUMNS = 6
"""So many maps of attention stand side by side."""
CELLS = 240
"""Up to so many, the number of each cell is written into it."""
LONGEST = 22
"""Letters of a layer's name; longer ones lose their middle."""


@attrs.frozen
class Side:
    """What is drawn of one model."""

    name: str
    """`student`, `teacher`, or `teacher large`."""
    paths: Sequence[str]
    """Where its layers are."""
    maps: Sequence[Tensor] = ()
    """The attention of each, (queries, keys)."""

    @property
    def labels(self) -> tuple[str, list[str]]:
        """What the paths have in common, `bert.encoder.layer.*`, and what is left of each."""
        return shortened(self.paths)


@attrs.frozen
class Picture:
    """A drawing that is done."""

    png: bytes
    pixels: Any
    """The same, (height, width, 3), uint8."""

    def save(self, path: Path) -> None:
        """Write it, whole or not at all; raises FolderError when it cannot be written."""
        fresh = path.with_name(f".{path.name}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(self.png)
            fresh.replace(path)
        except OSError as error:
            with suppress(OSError):
                fresh.unlink()
            raise FolderError(f"{path} cannot be written: {error.strerror}") from error


def shortened(paths: Sequence[str]) -> tuple[str, list[str]]:
    """What paths have in common, with a star for the rest, and the rest of each; of equal ones their numbers."""
    if len({*paths}) == 1:
        return paths[0], [str(number) for number in range(len(paths))]
    steps = [path.split(".") for path in paths]
    shortest = min(map(len, steps)) - 1
    head = next((i for i in range(shortest) if len({s[i] for s in steps}) > 1), shortest)
    rest = shortest - head
    tail = next((i for i in range(rest) if len({s[-1 - i] for s in steps}) > 1), rest)
    names = [".".join(s[head : len(s) - tail]) for s in steps]
    common = ".".join([*steps[0][:head], "*", *steps[0][len(steps[0]) - tail :]])
    return (common if head or tail else ""), [cut(name, LONGEST) for name in names]


def cut(text: str, most: int) -> str:
    """A text of so many letters at most, without its middle."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - half]}…{text[-half:]}"


def similarity(student: Side, teacher: Side, values: Tensor, *, title: str, over: str) -> Picture:
    """Similarity of every student layer with every teacher layer, (student layers, teacher layers), from 0 to 1.

    A frame is around the teacher layer that a student layer is most similar to.
    """
    (below, bottom), (beside, left) = teacher.labels, student.labels
    longest = max(map(len, bottom))
    wide, high, most = (
        (0.46, 0.4, 4) if values.numel() <= CELLS else (0.26, 0.24, 3)
    )  # a cell with a number, and one without
    width = max(5.2, 2.6 + 0.07 * max(map(len, left)) + wide * len(bottom))
    height = max(2.6, 1.9 + high * len(left) + (0.05 * longest if longest > most else 0))
    with drawn(width, height, layout="constrained") as figure:
        axes = figure.add_subplot()
        image = axes.imshow(values.numpy(), vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axes.set_facecolor("0.8")  # seen where there is no number
        axes.set_xticks(range(len(bottom)), bottom)
        axes.set_yticks(range(len(left)), left)
        if longest > most:
            axes.tick_params("x", rotation=60)
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        axes.set_xlabel(named(teacher.name, below, width))
        axes.set_ylabel(named(student.name, beside, height))
        axes.set_title(f"over {over}" + ("; framed: the nearest teacher layer" if len(bottom) > 1 else ""))
        figure.suptitle(title)
        figure.colorbar(image, ax=axes, label="linear CKA")
        marked(axes, values)
        sizes = f"{plural(len(left), 'student layer')} with {plural(len(bottom), 'teacher layer')}, over {over}."
        return taken(figure, title, f"{sizes} {nearest(values, left, bottom)}")


def named(side: str, common: str, room: float) -> str:
    """What stands at an axis: the model, and what its layers have in common, in two lines."""
    return f"{side}\n{cut(common, max(12, int(11 * room)))}" if common else side


def marked(axes: Axes, values: Tensor) -> None:
    """The numbers, and a frame around the highest of each row."""
    from matplotlib.patches import Rectangle

    for row, line in enumerate(values.tolist()):
        for column, value in enumerate(line):
            if values.numel() <= CELLS:
                text = "-" if math.isnan(value) else f"{value:.2f}"
                colour = "black" if math.isnan(value) or value > 0.6 else "white"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7.5)
        known = [value for value in line if not math.isnan(value)]
        if known and values.shape[1] > 1:
            corner = line.index(max(known)) - 0.5, row - 0.5
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="red", linewidth=1.6, clip_on=False))


def nearest(values: Tensor, left: Sequence[str], bottom: Sequence[str]) -> str:
    """`student 0 is nearest to teacher 2 (0.91), ...`"""
    found = []
    for name, line in zip(left, values.tolist(), strict=True):
        known = [value for value in line if not math.isnan(value)]
        if known:
            found.append(f"{name} to {bottom[line.index(max(known))]} ({max(known):.2f})")
    return f"Nearest: {', '.join(found)}." if found else "No layer varies."


def attention(sides: Sequence[Side], *, title: str) -> Picture:
    """The maps of each model below each other, in one scale of colours, all of one size."""
    from matplotlib.colors import PowerNorm

    columns = min(COLUMNS, max(len(side.maps) for side in sides))
    top = max(float(one.nan_to_num(0).max()) for side in sides for one in side.maps)
    sheet = Sheet(max(columns, 3), [math.ceil(len(side.maps) / columns) for side in sides])
    with drawn(sheet.width, sheet.height, layout=None) as figure:
        norm = PowerNorm(0.5, vmin=0, vmax=top or 1)  # a few large numbers would leave all others black
        figure.text(0.5, 1 - 0.22 / sheet.height, title, ha="center", va="center", fontsize=11)
        for number, side in enumerate(sides):
            common, labels = side.labels
            heading = cut(f"{side.name}: {common}" if common else side.name, sheet.letters)
            figure.text(sheet.left / sheet.width, sheet.heading(number), heading, va="center", weight="bold")
            for place, (name, one) in enumerate(zip(labels, side.maps, strict=True)):
                row, column = divmod(place, columns)
                axes = figure.add_axes(sheet.box(number, row, column))
                image = panel(axes, one, name if len(labels) > 1 else "", norm)
                if not column:
                    axes.set_ylabel("query", fontsize=7)
                if place + columns >= len(labels):
                    axes.set_xlabel("key", fontsize=7)
        bar = figure.colorbar(image, cax=figure.add_axes(sheet.bar))
        bar.set_label("attention (colours go by its square root)")
        told = [
            f"{side.name}: {plural(len(side.maps), 'layer')}, {plural(len(side.maps[0]), 'token')}" for side in sides
        ]
        return taken(figure, title, f"{'; '.join(told)}. The highest of all is {top:.2f}.")


@attrs.frozen
class Sheet:
    """Where the maps stand, in inches and as shares of the sheet: nothing that is written runs into a drawing."""

    columns: int
    rows: Sequence[int]
    """Of each model."""

    left: ClassVar[float] = 0.6
    cell: ClassVar[float] = 1.35
    """The side of a map."""
    step: ClassVar[tuple[float, float]] = (1.7, 1.78)
    """From one map to the next, to the right and down."""
    head: ClassVar[float] = 0.52
    """The height of a model's heading, with the titles of its first row."""

    @property
    def width(self) -> float:
        """With the bar at the right."""
        return self.left + self.columns * self.step[0] + 0.75

    @property
    def height(self) -> float:
        """With the title at the top."""
        return 0.4 + sum(self.head + rows * self.step[1] for rows in self.rows)

    @property
    def letters(self) -> int:
        """How long a heading may be, in bold ones, beside the bar."""
        return int((self.width - self.left - 1.1) / 0.092)

    @property
    def bar(self) -> tuple[float, float, float, float]:
        """The bar of colours."""
        tall = min(3.2, self.height - 1.2)
        return 1 - 0.85 / self.width, (self.height - tall) / 2 / self.height, 0.16 / self.width, tall / self.height

    def heading(self, number: int) -> float:
        """The height of a model's name."""
        return 1 - (self._above(number) + 0.17) / self.height

    def box(self, number: int, row: int, column: int) -> tuple[float, float, float, float]:
        """One map of a model."""
        bottom = self.height - self._above(number) - self.head - row * self.step[1] - self.cell
        left = self.left + column * self.step[0]
        return left / self.width, bottom / self.height, self.cell / self.width, self.cell / self.height

    def _above(self, number: int) -> float:
        return 0.4 + sum(self.head + rows * self.step[1] for rows in self.rows[:number])


def panel(axes: Axes, one: Tensor, name: str, norm: Any) -> Any:
    """One map."""
    from matplotlib.ticker import MaxNLocator

    image = axes.imshow(one.numpy(), norm=norm, cmap="magma", aspect="auto")
    axes.set_title(cut(name, 18), pad=3)
    locator = MaxNLocator(nbins=4, integer=True, min_n_ticks=1)
    for axis, length in ((axes.xaxis, one.shape[1]), (axes.yaxis, one.shape[0])):
        axis.set_ticks([place for place in locator.tick_values(0, length - 1) if 0 <= place < length])
    axes.tick_params(labelsize=6, length=2, pad=1)
    return image


def plural(count: int, noun: str) -> str:
    """`1 layer`, `12 layers`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


@contextmanager
def drawn(width: float, height: float, layout: Literal["constrained"] | None) -> Iterator[Figure]:
    """A figure of so many inches, in matplotlib's own settings: a user's file may say anything of fonts."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        figure = Figure(figsize=(width, height), dpi=120, layout=layout)
        FigureCanvasAgg(figure)
        yield figure


def taken(figure: Figure, title: str, text: str) -> Picture:
    """The drawing as a PNG whose title and description `hookbrew report` shows."""
    import numpy as np

    stream = io.BytesIO()
    told = {"Title": title, "Description": text.encode("ascii", "replace").decode(), "Software": None}
    figure.savefig(stream, format="png", metadata=told)
    canvas: Any = figure.canvas
    return Picture(stream.getvalue(), np.array(canvas.buffer_rgba())[..., :3])
