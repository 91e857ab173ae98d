"""A callback: an object whose methods are named for events."""

from __future__ import annotations

import attrs

from hookbrew.loop import State
from hookbrew.plugin import at_least, options


@options
class Patience:
    """Ends the training when a metric has not risen for some evaluations."""

    metric: str = "accuracy"
    """The metric to watch."""
    evaluations: int = at_least(1, 3)
    """How many evaluations without a new best are waited for."""

    def build(self) -> Watch:
        """The callback."""
        return Watch(self.metric, self.evaluations)


@attrs.define(eq=False)
class Watch:
    """Counts evaluations since the best one."""

    _metric: str
    _most: int
    _best: float = float("-inf")
    _waited: int = 0

    def eval_end(self, state: State) -> None:
        """Compare with the best so far, and ask for the end if there is nothing to wait for."""
        value = state.metrics[self._metric]
        self._waited = 0 if value > self._best else self._waited + 1
        self._best = max(self._best, value)
        if self._waited >= self._most:
            state.request_stop(f"{self._metric} has not risen for {self._waited} evaluations")
