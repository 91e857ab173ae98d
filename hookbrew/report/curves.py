"""What is drawn and compared: the curves of a run over all its stages, in groups, and what each comes to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import attrs

from hookbrew.report.read import Run

GROUPS = ("Losses", "Evaluation", "Learning rate, weights and options", "Gradient and speed", "Others")
"""In the order of the page."""
CHOSEN = GROUPS[2]
"""The numbers that were chosen, not measured: one that never moves needs no plot."""

LATE = {"lr": 0, "weight": 2}
"""Within their group rates come before, and weights after, what a schedule moves besides."""
FALLING = frozenset(
    {
        *("loss", "error", "ece", "perplexity", "ppl", "mse", "mae", "rmse", "kl", "nll"),
        *("brier", "wer", "cer", "distance", "seconds", "latency"),
    }
)
"""Words in the last part of a name whose best number is the lowest; of another evaluation it is the highest."""
UNITS = {"samples_per_second": "samples / s", "grad_norm": "norm", "lr": "learning rate"}
"""What stands at the vertical axis, by the first part of a name; else the last part of the name."""


@attrs.frozen
class Curve:
    """One number of one run. Steps count on over the stages; a line is not drawn from one stage into the next."""

    pieces: tuple[tuple[tuple[int, float | None], ...], ...]
    """For each stage that has any: the steps, and the numbers or None for what was not finite."""

    @property
    def points(self) -> list[tuple[int, float | None]]:
        """All stages after one another."""
        return [point for piece in self.pieces for point in piece]

    @property
    def finite(self) -> list[tuple[int, float]]:
        """The points that have a number."""
        return [(step, value) for step, value in self.points if value is not None]

    @property
    def lost(self) -> list[int]:
        """The steps at which it was not finite."""
        return [step for step, value in self.points if value is None]

    @property
    def last(self) -> float | None:
        """The newest number; None if it was not finite."""
        return self.points[-1][1]

    @property
    def moves(self) -> bool:
        """Whether it is not one and the same number all the time."""
        return len({value for _, value in self.points}) > 1


@attrs.frozen
class Stretch:
    """Where a stage lies on the axis of steps."""

    name: str
    start: int
    """The steps before it."""
    stop: int


def stretches(run: Run) -> list[Stretch]:
    """The stages of a run after one another."""
    found, start = [], 0
    for part in run.parts:
        found.append(Stretch(part.name, start, start + part.steps))
        start += part.steps
    return found


def curves(run: Run, only: int | None = None) -> dict[str, Curve]:
    """By name; only: of one stage, by its number, with the steps counted from its own beginning."""
    made: dict[str, list[tuple[tuple[int, float | None], ...]]] = {}
    for number, (part, stretch) in enumerate(zip(run.parts, stretches(run), strict=True)):
        if only in (None, number):
            offset = stretch.start if only is None else 0
            for name, points in part.rows.curves().items():
                made.setdefault(name, []).append(tuple((step + offset, value) for step, value in points.items()))
    return {name: Curve(tuple(pieces)) for name, pieces in made.items()}


def grouped(names: Iterable[str]) -> dict[str, list[str]]:
    """The names in the groups of the page; groups without any are left out."""
    listed = list(names)
    weighted = {name.removeprefix("weight/") for name in listed if name.startswith("weight/")}
    found: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name in sorted(listed, key=lambda name: LATE.get(name.partition("/")[0], 1)):
        found[group(name, weighted)].append(name)
    return {group: names for group, names in found.items() if names}


def group(name: str, weighted: Iterable[str]) -> str:
    """Where a number belongs; weighted: the names of losses, whose options a schedule may move."""
    first, _, rest = name.partition("/")
    whole = {"loss": "Losses", "lr": CHOSEN, "weight": CHOSEN, "eval": "Evaluation"}
    if first in whole and (rest or first in ("loss", "lr")):
        return whole[first]
    if name in ("grad_norm", "samples_per_second"):
        return "Gradient and speed"
    return CHOSEN if rest in weighted else "Others"


def falls(name: str) -> bool | None:
    """Whether the lowest number is the best; None where no number is better than another."""
    first, _, rest = name.partition("/")
    if first == "loss":
        return True
    return not FALLING.isdisjoint(rest.rpartition("/")[2].split("_")) if first == "eval" and rest else None


def best(name: str, curve: Curve) -> tuple[int, float] | None:
    """The step and the number that is best, where it was first reached; None if none was finite, or none is better.

    Of a loss, in the last stage that has it: what is minimised is another thing in each.
    """
    falling = falls(name)
    if falling is None:
        return None
    sign = 1 if falling else -1
    points = Curve(curve.pieces[-1:]).finite if name.partition("/")[0] == "loss" else curve.finite
    return min(points, key=lambda point: (sign * point[1], point[0]), default=None)


def unit(name: str) -> str:
    """What stands at the vertical axis."""
    first, _, _ = name.partition("/")
    if first in ("loss", "weight"):
        return first
    return UNITS.get(first, name.rpartition("/")[2] if first == "eval" else first)


def steady(group: str, drawn: Mapping[str, Sequence[Curve]]) -> Iterator[str]:
    """The names of a group's settings that are one number in all runs."""
    for name, every in drawn.items():
        still = group == CHOSEN and not any(curve.moves for curve in every)
        if still and len({curve.last for curve in every}) == 1:
            yield name


def shown(value: float | None) -> str:
    """A number for a person: four digits that count."""
    if value is None:
        return "not finite"
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3e}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
