"""Evaluation: the student on other data, with nothing of the training moved by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor

from hookbrew.loop.batch import Batch, moved, size_of, taken
from hookbrew.loop.data import Feed
from hookbrew.loop.device import autocast
from hookbrew.loop.dispatch import Dispatch
from hookbrew.loop.state import State
from hookbrew.loop.trainable import Trainable
from hookbrew.loop.training import Training
from hookbrew.modes import evaluating as still
from hookbrew.ranks import Ranks


@attrs.frozen(kw_only=True)
class Evaluation:
    """Runs the student over the evaluation data and lets callbacks count.

    Several processes share the rows of each batch, and each of them sees the logits of all: whatever a callback counts,
    it counts over all data, and comes to the same in every process.
    """

    objective: Trainable
    feed: Feed
    dispatch: Dispatch
    autocast: Callable[[], AbstractContextManager[object]]

    def __call__(self, state: State) -> None:
        """Fire eval_start, eval_batch_end for each batch, eval_end; modes and random states come back."""
        state.eval_requested = False
        state.metrics = {}
        with still(state.student), torch.no_grad():
            self.dispatch.fire("eval_start", state)
            state.ranks.alike([*state.student.buffers()])  # each process has statistics of its own
            for batch in self.feed.epoch(1):
                state.see(moved(batch, state.device))
                state.logits, state.labels = self.predicted(state.batch, state.ranks)
                self.dispatch.fire("eval_batch_end", state)
            state.logits = state.labels = None
            self.dispatch.fire("eval_end", state)
            state.last_eval_step = state.step  # not before: that there was none tells filters which one is the first

    def predicted(self, batch: Batch, ranks: Ranks) -> tuple[Any, Any]:
        """The student's logits for a batch and its labels, each process computing some of the rows."""
        if ranks.size == 1:
            with self.autocast():
                return self.objective.predict(batch)
        size = size_of(batch)
        rows = ranks.rows(size)
        with self.autocast():
            logits, labels = self.objective.predict(taken(batch, rows))
            if not fitting([*listed(logits), *listed(labels)], len(rows), ranks):
                return self.objective.predict(batch)  # rows of these are no rows of the batch, or not of one length
        return joined(logits, ranks, size), joined(labels, ranks, size)


def listed(value: Any) -> list[Tensor]:
    """Tensors of which there are several, or one, or none."""
    return value if isinstance(value, list) else [] if value is None else [value]


def fitting(tensors: Sequence[Tensor], rows: int, ranks: Ranks) -> bool:
    """Whether all processes have so many rows of each tensor, of one shape.

    They have not where a model leaves padding out by itself: what is longest differs. All decide alike, for those that
    go on wait for each other.
    """
    sizes = [size for tensor in tensors for size in tensor.shape]
    apart = not all(tensor.dim() and len(tensor) == rows for tensor in tensors)
    wrong, *most = ranks.most([int(apart), *sizes, *(-size for size in sizes)])
    return not wrong and most == [*sizes, *(-size for size in sizes)]


def joined(value: Any, ranks: Ranks, size: int) -> Any:
    """The rows of all processes, of each of several tensors, or of one."""
    if isinstance(value, list):
        return [joined(part, ranks, size) for part in value]
    return None if value is None else ranks.whole(value, size)


def evaluating(loop: Training) -> Evaluation | None:
    """What evaluates in a training, if there is data for it."""
    if loop.evaluate is None:
        return None
    precise = partial(autocast, loop.train.precision, loop.device)
    return Evaluation(objective=loop.objective, feed=loop.evaluate, dispatch=loop.dispatch, autocast=precise)
