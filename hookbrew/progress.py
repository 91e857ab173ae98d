"""A schedule is a number over training progress; it multiplies a base.

One idea serves loss weights, the learning rate and whatever else moves during a run. Progress goes from
0 at the first step to just under 1 at the last: at step s of S it is (s - 1) / S.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

Schedule = Callable[[float], float]
"""progress in [0, 1] -> a multiplier."""


@attrs.frozen
class Scheduled:
    """`base` times a schedule; without a schedule, `base` for ever."""

    base: float
    schedule: Schedule | None = None

    def at(self, progress: float) -> float:
        """The value at this point of the training."""
        return self.base if self.schedule is None else self.base * self.schedule(progress)
