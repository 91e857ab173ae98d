"""Schedules: a multiplier over training progress, which goes from 0 to 1.

Step s of S has progress (s - 1) / S, so the first step is exactly 0 and the last just under 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from hookbrew.plugin import fraction, options

Schedule = Callable[[float], float]


@options
class Constant:
    """The same multiplier from the first step to the last."""

    value: float = 1.0
    """The multiplier."""

    def build(self) -> Schedule:
        """The schedule, as a function of progress."""
        return partial(constant, value=self.value)


@options
class LinearDecay:
    """A straight line down: `start` at the first step, `end` after the last one."""

    start: float = 1.0
    """The multiplier at progress 0."""
    end: float = 0.0
    """The multiplier at progress 1."""

    def build(self) -> Schedule:
        """The schedule, as a function of progress."""
        return partial(line, start=self.start, end=self.end)


@options
class LinearGrowth:
    """A straight line up: `start` at the first step, `end` after the last one."""

    start: float = 0.0
    """The multiplier at progress 0."""
    end: float = 1.0
    """The multiplier at progress 1."""

    def build(self) -> Schedule:
        """The schedule, as a function of progress."""
        return partial(line, start=self.start, end=self.end)


@options
class Linear:
    """Warm-up in a straight line from 0 to 1, then in a straight line to `end`: the usual one for transformers."""

    warmup: float = fraction(0.0)
    """The part of the training that is warm-up: 0.1 is a tenth of the steps."""
    end: float = fraction(0.0)
    """The multiplier at progress 1."""

    def build(self) -> Schedule:
        """The schedule, as a function of progress."""
        return partial(linear, warmup=self.warmup, end=self.end)


@options
class Cosine:
    """Warm-up in a straight line from 0 to 1, then half a cosine down to `end` (Loshchilov and Hutter 2017, eq. 5)."""

    warmup: float = fraction(0.0)
    """The part of the training that is warm-up: 0.1 is a tenth of the steps."""
    end: float = fraction(0.0)
    """The multiplier at progress 1."""

    def build(self) -> Schedule:
        """The schedule, as a function of progress."""
        return partial(cosine, warmup=self.warmup, end=self.end)


def constant(progress: float, *, value: float = 1.0) -> float:
    """`value`, whatever the progress."""
    del progress  # every schedule is called with it
    return value


def line(progress: float, *, start: float, end: float) -> float:
    """start (1 - progress) + end progress."""
    return start * (1.0 - progress) + end * progress


def linear(progress: float, *, warmup: float = 0.0, end: float = 0.0) -> float:
    """progress / warmup up to `warmup`, from there the line from 1 to `end`."""
    if progress < warmup:
        return progress / warmup
    return line(rest(progress, warmup), start=1.0, end=end)


def cosine(progress: float, *, warmup: float = 0.0, end: float = 0.0) -> float:
    """progress / warmup up to `warmup`, from there end + (1 - end) (1 + cos(pi r)) / 2, r the share of the rest."""
    if progress < warmup:
        return progress / warmup
    return end + (1.0 - end) * (1.0 + math.cos(math.pi * rest(progress, warmup))) / 2.0


def rest(progress: float, warmup: float) -> float:
    """How much of the time after the warm-up is over, from 0 to 1; 0 if there is no such time."""
    return (progress - warmup) / (1.0 - warmup) if warmup < 1.0 else 0.0
