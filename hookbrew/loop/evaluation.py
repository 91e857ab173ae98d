"""Evaluation: the student on other data, with nothing of the training moved by it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import attrs
import torch

from hookbrew.loop.batch import moved
from hookbrew.loop.data import Feed
from hookbrew.loop.dispatch import Dispatch
from hookbrew.loop.state import State
from hookbrew.loop.step import Trainable
from hookbrew.modes import evaluating


@attrs.frozen(kw_only=True)
class Evaluation:
    """Runs the student over the evaluation data and lets callbacks count."""

    objective: Trainable
    feed: Feed
    dispatch: Dispatch
    autocast: Callable[[], AbstractContextManager[object]]

    def __call__(self, state: State) -> None:
        """Fire eval_start, eval_batch_end for each batch, eval_end; modes and random states come back."""
        state.eval_requested = False
        state.metrics = {}
        with evaluating(state.student), torch.no_grad():
            self.dispatch.fire("eval_start", state)
            for batch in self.feed.epoch(1):
                state.see(moved(batch, state.device))
                with self.autocast():
                    state.logits, state.labels = self.objective.predict(state.batch)
                self.dispatch.fire("eval_batch_end", state)
            state.logits = state.labels = None
            self.dispatch.fire("eval_end", state)
            state.last_eval_step = state.step  # not before: that there was none tells filters which one is the first
