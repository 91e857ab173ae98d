"""What every schedule does. `check_schedule(Linear(warmup=0.1))` checks it all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from hookbrew.testing.kit import Kit, law, require

POINTS = tuple(i / 97 for i in range(98))
"""Progress from 0 to 1, both included; 97 is prime, so few points fall on the round fractions of options."""


@attrs.frozen
class Curve:
    """A schedule."""

    options: Any
    at: Callable[[float], float]
    offers: frozenset[str] = frozenset()


@law()
def defined_at_both_ends(curve: Curve) -> None:
    """Progress 0, the first step, and 1, the end of the training, have a value, which is a Python number."""
    for progress in (0.0, 1.0):
        value = curve.at(progress)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        require(number, f"progress {progress} gives a {type(value).__name__}, no number")


@law()
def finite(curve: Curve) -> None:
    """Every value from progress 0 to 1 is finite."""
    for progress in POINTS:
        require(math.isfinite(curve.at(progress)), f"progress {progress:.4g} gives {curve.at(progress)}")


@law()
def pure(curve: Curve) -> None:
    """A value depends on the progress alone: not on earlier calls, so that a resumed run goes on alike."""
    forward = [curve.at(progress) for progress in POINTS]
    again = [curve.at(progress) for progress in reversed(POINTS)][::-1]
    fresh = [curve.options.build()(progress) for progress in POINTS]
    for progress, one, other, third in zip(POINTS, forward, again, fresh, strict=True):
        require(one == other == third, f"progress {progress:.4g} gives {one}, then {other}; built anew {third}")


def curves(options: Any) -> Iterator[Curve]:
    """The one subject."""
    yield Curve(options, options.build())


PROPERTIES = (defined_at_both_ends, finite, pure)

check_schedule = Kit("schedule", curves, PROPERTIES)
"""check_schedule(options, exempt=None): AssertionError unless the schedule has all of PROPERTIES."""
