"""One metric of the evaluations, whether it is best at its highest or lowest, and the best values so far."""

from __future__ import annotations

import math
from typing import Any

import attrs

from hookbrew import words
from hookbrew.errors import ConfigError, Problem
from hookbrew.loop import State
from hookbrew.plugin import choice, options

KNOWN = {
    "accuracy": "highest",
    "calibration_error": "lowest",
    "exact": "highest",
    "f1": "highest",
    "loss": "lowest",
    "precision": "highest",
    "recall": "highest",
}
"""Where metrics are best; `trec/accuracy` of several tasks is known by its last word."""


@options
class Goal:
    """What an evaluation is judged by."""

    metric: str = "accuracy"
    """What to watch, by its name in the results of an evaluation: accuracy; trec/accuracy of several tasks."""
    goal: str | None = choice("highest", "lowest", default=None)
    """Where the metric is best; known by name for accuracy, exact, f1, precision, recall (highest), loss and
    calibration_error (lowest)."""

    def __attrs_post_init__(self) -> None:
        """Raise ValueError when nobody says where the metric is best."""
        if self.goal is None and self._last not in KNOWN:
            raise ValueError(
                f"'goal' must be highest or lowest: it is not known of metric {self.metric!r}; "
                f"{words.hint(self._last, KNOWN)}"
            )

    @property
    def highest(self) -> bool:
        """Whether more is better."""
        return (self.goal or KNOWN[self._last]) == "highest"

    def found(self, state: State, who: str) -> float:
        """The metric of this evaluation; raises ConfigError when it is not there. who: the callback, for messages."""
        if self.metric not in state.metrics:
            near = words.hint(self.metric, state.metrics) if state.metrics else "what counts metrics comes before it"
            raise ConfigError([Problem(f"callback {who!r}", f"no evaluation gives a metric {self.metric!r}; {near}")])
        return float(state.metrics[self.metric])

    def __str__(self) -> str:
        return f"the {'highest' if self.highest else 'lowest'} {self.metric}"

    @property
    def _last(self) -> str:
        return self.metric.rpartition("/")[2]


@attrs.define(eq=False)
class Mark:
    """The best value so far, and the step of its evaluation."""

    who: str
    """The name of the callback, for messages."""
    goal: Goal
    margin: float = 0.0
    """What a value has to be better by, to count."""
    value: float | None = None
    step: int | None = None

    def passed(self, state: State) -> bool:
        """Whether this evaluation is better than all before, which makes it the mark; nan never is.

        Raises ConfigError when it has no such metric.
        """
        value = self.goal.found(state, self.who)
        if math.isnan(value):
            return False
        gain = math.inf if self.value is None else value - self.value if self.goal.highest else self.value - value
        if not gain > self.margin:
            return False
        self.value, self.step = value, state.step
        return True

    def state_dict(self) -> dict[str, Any]:
        """The mark as plain values."""
        return {"value": self.value, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a mark."""
        self.value, self.step = state["value"], state["step"]


@attrs.define(eq=False)
class Top:
    """The best values so far, each with the step of its evaluation."""

    goal: Goal
    most: int
    """How many there are at most."""
    values: dict[int, float] = attrs.field(factory=dict)
    """By step, the best first; of several alike, the first stays first."""

    def takes(self, value: float) -> bool:
        """Whether a value belongs to the best; nan never does."""
        worst = [*self.values.values()][-1:] if len(self.values) >= self.most else []
        return not math.isnan(value) and all(self._key(value) < self._key(other) for other in worst)

    def add(self, step: int, value: float) -> None:
        """Take in a value, and let go of the worst if they are too many."""
        every = {**self.values, step: value}
        best = sorted(every, key=lambda step: (self._key(every[step]), step))[: self.most]  # equal ones by their steps
        self.values = {step: every[step] for step in best}

    def _key(self, value: float) -> float:
        return -value if self.goal.highest else value
