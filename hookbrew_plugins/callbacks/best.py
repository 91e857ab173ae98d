"""The student of the best evaluation, in files that load without hookbrew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs

from hookbrew.errors import FolderError
from hookbrew.loop import State, finite, save
from hookbrew.plugin import options
from hookbrew_plugins.callbacks.goal import Goal, Mark
from hookbrew_plugins.callbacks.inside import inside


@options
class Best(Goal):
    """Keeps the student of the best evaluation, which loads without hookbrew, with metrics.json beside it.

    It is the student that was evaluated: under the callback ema the average, in whatever order the two stand.
    """

    folder: str = attrs.field(default="best", validator=inside)
    """Where, in the run folder: by `save_pretrained` for a model of transformers, else as student.safetensors."""

    def build(self) -> Keeper:
        """The callback."""
        return Keeper(Mark("best", self), self.folder)


@attrs.define(eq=False)
class Keeper:
    """Writes when an evaluation is the best so far; of several alike the first stays."""

    _mark: Mark
    _folder: str

    def run_start(self, state: State) -> None:
        """Find out now whether there is a place to write to."""
        state.require_folder("best")

    def eval_end(self, state: State) -> None:
        """Replace the student that was best before."""
        if state.ranks.first(lambda: self._mark.passed(state)):  # a metric may differ, and all save together
            folder = state.require_folder("best") / self._folder
            save(state.student, folder)
            if state.ranks.main:
                write(folder / "metrics.json", self._described(state))

    def state_dict(self) -> dict[str, Any]:
        """The best value and its step."""
        return self._mark.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there: what is worse replaces nothing."""
        self._mark.load_state_dict(state)

    def _described(self, state: State) -> dict[str, Any]:
        metrics = finite(state.metrics)
        best = {"metric": self._mark.goal.metric, "value": metrics[self._mark.goal.metric]}
        return {**best, "step": state.step, "epoch": state.epoch, "metrics": metrics}


def write(path: Path, facts: dict[str, Any]) -> None:
    """A JSON file, whole or not at all; raises FolderError when it cannot be written."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.write_text(json.dumps(facts, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        raise FolderError(f"{path} cannot be written: {error.strerror}") from error
