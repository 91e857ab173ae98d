"""The end of a training that does not get better any more."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs

from hookbrew.loop import State
from hookbrew.plugin import at_least, options
from hookbrew_plugins.callbacks.goal import Goal, Mark


@options
class EarlyStop(Goal):
    """Ends the training when a metric has not become better for some evaluations."""

    exempt: ClassVar[dict[str, str]] = {"asks_nothing": "asking for a stop is what it is for"}

    patience: int = at_least(1, 3)
    """After how many evaluations in a row that were not better the training ends."""
    min_delta: float = at_least(0.0, 0.0)
    """By how much an evaluation has to be better than the best one, to count as better."""

    def build(self) -> Patience:
        """The callback."""
        return Patience(Mark("early_stop", self, self.min_delta), self.patience)


@attrs.define(eq=False)
class Patience:
    """Counts the evaluations since the best one."""

    _mark: Mark
    _most: int
    _waited: int = 0

    def run_start(self, state: State) -> None:
        """Ask once more if the training that is resumed had been asked to end."""
        self._ask(state)

    def eval_end(self, state: State) -> None:
        """Compare with the best so far, and ask for the end if there is nothing to wait for."""
        self._waited = 0 if self._mark.passed(state) else self._waited + 1
        self._ask(state)

    def state_dict(self) -> dict[str, Any]:
        """The best value and its step, and how many evaluations came since."""
        return {**self._mark.state_dict(), "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on waiting."""
        self._mark.load_state_dict(state)
        self._waited = state["waited"]

    def _ask(self, state: State) -> None:
        if self._waited < self._most:
            return
        mark, evaluations = self._mark, f"{self._waited} evaluation{'s' * (self._waited > 1)}"
        than = "a number" if mark.value is None else f"better than {mark.value:.6g} of step {mark.step}"
        state.request_stop(f"{mark.goal.metric} was not {than} in {evaluations}")
