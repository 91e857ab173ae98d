"""A schedule: a number over training progress."""

from __future__ import annotations

import math
from collections.abc import Callable

from hookbrew.plugin import options


@options
class HalfSine:
    """Rises from 0 to 1 in the middle of the training, and falls to 0 again."""

    def build(self) -> Callable[[float], float]:
        """progress in [0, 1] -> a multiplier."""
        return lambda progress: math.sin(math.pi * progress)
