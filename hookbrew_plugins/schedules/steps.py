"""Schedules in pieces: jumps, points with lines between them, and a bare warm-up. Progress goes from 0 to 1."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import attrs
from attrs.validators import and_, gt, le, optional

from hookbrew.plugin import fraction, options, positive
from hookbrew_plugins.schedules.ramps import line

Schedule = Callable[[float], float]

HALVES = (0.5, 0.75)
"""Where a step schedule jumps that was not told: after a half, and after half of the rest."""
SLACK = 1e-9
"""Progress that is this near to a jump has reached it: 0.3 / 0.1 is 2.9999999999999996."""


def rising(_: Any, field: attrs.Attribute[Any], value: Sequence[float] | None) -> None:
    """Raise ValueError unless numbers rise, and lie between 0 and 1; a validator of attrs."""
    if value is not None and not (value and all(0.0 < one <= 1.0 for one in value)):
        raise ValueError(f"'{field.name}' must be numbers > 0 and <= 1: {[*value]}")
    if value is not None and any(one >= other for one, other in pairwise(value)):
        raise ValueError(f"'{field.name}' must rise: {[*value]}")


def plotted(_: Any, field: attrs.Attribute[Any], value: Sequence[tuple[float, float]]) -> None:
    """Raise ValueError unless points have finite values, and progress that rises from 0 to 1; a validator of attrs."""
    if not value:
        raise ValueError(f"'{field.name}' must have one point at least")
    for progress, height in value:
        if not 0.0 <= progress <= 1.0:
            raise ValueError(f"'{field.name}' must have progress from 0 to 1: {progress}")
        if not math.isfinite(height):
            raise ValueError(f"'{field.name}' must have finite values: {height}")
    for one, other in pairwise(progress for progress, _ in value):
        if one >= other:
            raise ValueError(f"'{field.name}' must rise in progress: {other} comes after {one}")


@options
class Step:
    """Multiplied by `factor` at each milestone, and constant between them; without options at 0.5 and 0.75."""

    factor: float = positive(0.1)
    """What each milestone multiplies with."""
    every: float | None = attrs.field(default=None, validator=optional(and_(gt(0), le(1))))
    """The distance between milestones, as a share of the training: 0.3 is 0.3, 0.6 and 0.9."""
    milestones: list[float] | None = attrs.field(default=None, validator=rising)
    """The progress at each milestone; either this or `every`."""

    def __attrs_post_init__(self) -> None:
        """Raise ValueError when both are given."""
        if self.every is not None and self.milestones is not None:
            raise ValueError("'milestones' cannot stand beside every; leave one of them out")

    def build(self) -> Schedule:
        """The schedule, as a function of progress."""
        if self.every is not None:
            return partial(stairs, factor=self.factor, every=self.every)
        return partial(step, factor=self.factor, milestones=tuple(self.milestones or HALVES))


@options
class Piecewise:
    """Through points, with straight lines or jumps between them; constant before the first and after the last."""

    points: list[tuple[float, float]] = attrs.field(factory=lambda: [(0.0, 1.0), (1.0, 0.0)], validator=plotted)
    """Pairs of progress and multiplier, progress rising from 0 to 1: [[0, 1], [0.5, 1], [1, 0.1]]."""
    interpolate: Literal["linear", "constant"] = "linear"
    """Between two points: a line, or the value of the earlier one."""

    def build(self) -> Schedule:
        """The schedule, as a function of progress."""
        between = piecewise if self.interpolate == "linear" else held
        return partial(between, points=tuple((progress, value) for progress, value in self.points))


@options
class Warmup:
    """Warm-up in a straight line from `start` to 1, then 1 to the end. For a decay after it, take linear or cosine."""

    share: float = fraction(0.1)
    """The part of the training that is warm-up: 0.1 is a tenth of the steps."""
    start: float = fraction(0.0)
    """The multiplier at progress 0."""

    def build(self) -> Schedule:
        """The schedule, as a function of progress."""
        return partial(warmup, share=self.share, start=self.start)


def step(progress: float, *, factor: float, milestones: Sequence[float]) -> float:
    """factor to the power of how many milestones are reached."""
    return float(factor ** bisect_right(milestones, progress + SLACK))


def stairs(progress: float, *, factor: float, every: float) -> float:
    """factor ^ floor(progress / every)."""
    return float(factor ** math.floor((progress + SLACK) / every))


def piecewise(progress: float, *, points: Sequence[tuple[float, float]]) -> float:
    """The line between the two points around this progress; the value of the outermost point outside."""
    after = bisect_right(points, progress, key=lambda point: point[0])
    if after in (0, len(points)):
        return points[max(0, after - 1)][1]
    (begin, start), (stop, end) = points[after - 1 : after + 1]
    return line((progress - begin) / (stop - begin), start=start, end=end)


def held(progress: float, *, points: Sequence[tuple[float, float]]) -> float:
    """The value of the last point that is reached; that of the first one before it."""
    return points[max(0, bisect_right(points, progress + SLACK, key=lambda point: point[0]) - 1)][1]


def warmup(progress: float, *, share: float, start: float = 0.0) -> float:
    """The line from start to 1 up to `share`, from there 1."""
    return line(progress / share, start=start, end=1.0) if progress < share else 1.0
