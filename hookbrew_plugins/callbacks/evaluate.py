"""Numbers of an evaluation, counted over whole data sets, never averaged over batches; by torchmetrics if of classes.

N positions or samples with a label, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import attrs
import torch
from attrs.validators import deep_iterable, in_
from torch import Tensor
from torch.nn.functional import cross_entropy

from hookbrew.errors import DataError
from hookbrew.loop import State
from hookbrew.objective import hard
from hookbrew.plugin import options

IGNORED = -100
"""The label of positions and samples that have none."""

CLASSES: dict[str, tuple[str, dict[str, str]]] = {
    "calibration_error": ("MulticlassCalibrationError", {}),
    "f1": ("MulticlassF1Score", {"average": "macro"}),
    "precision": ("MulticlassPrecision", {"average": "macro"}),
    "recall": ("MulticlassRecall", {"average": "macro"}),
}
"""Names of ours for classes of torchmetrics with their arguments; they need one number of classes in all batches."""
MEANS = ("accuracy", "exact", "loss")
"""Names of what is a mean over positions or samples, whatever number of classes they have."""


@options
class Evaluate:
    """Counts metrics of the student over the evaluation data, by the batch's labels; of several tasks for each.

    Where there are several logits, as for the start and the end of a span, all of them are counted alike.
    """

    metrics: list[str] = attrs.field(factory=lambda: ["accuracy"], validator=deep_iterable(in_([*CLASSES, *MEANS])))
    """Any of accuracy; exact (samples of which every position is right); loss (cross-entropy); calibration_error; and
    f1, precision, recall (the mean over classes)."""

    def build(self) -> Counter:
        """The callback."""
        return Counter(tuple(self.metrics))


@attrs.define(eq=False)
class Counter:
    """The metrics are made at the first batch of a task, when the number of classes is known."""

    priority: ClassVar[int] = -100

    _names: tuple[str, ...]
    _counting: dict[str | None, dict[str, Any]] = attrs.field(factory=dict)
    """By task."""

    def eval_start(self, state: State) -> None:
        """Forget the last evaluation."""
        self._counting = {}

    def eval_batch_end(self, state: State) -> None:
        """Count one batch; raises DataError when it has no labels."""
        if state.labels is None or state.logits is None:
            raise DataError(f"callback 'evaluate' needs labels in the evaluation data; the batch has {[*state.batch]}")
        several = isinstance(state.logits, list)
        pairs = list(zip(state.logits, state.labels, strict=True) if several else [(state.logits, state.labels)])
        pairs = [(logits, hard(logits, labels, "callback 'evaluate'")) for logits, labels in pairs]
        first = pairs[0][0]
        if state.task not in self._counting:
            fresh = {name: made(name, first.shape[-1], first.device) for name in self._names}
            self._counting[state.task] = fresh
        for name, metric in self._counting[state.task].items():
            if name == "exact":
                metric.update(exact(pairs))
            for logits, labels in pairs if name != "exact" else ():
                there = labels != IGNORED
                count(name, metric, logits[there].float(), labels[there])

    def eval_end(self, state: State) -> None:
        """Give the numbers to whoever comes later in the order of callbacks: `trec/accuracy` of several tasks."""
        for task, counting in self._counting.items():
            before = "" if task is None else f"{task}/"
            state.metrics |= {f"{before}{name}": computed(metric) for name, metric in counting.items()}


def computed(metric: Any) -> float:
    """The number; nan if nothing at all was counted."""
    return float(metric.compute()) if metric.update_called else math.nan


@attrs.define(eq=False)
class Mean:
    """The mean of rows, with what is used here of a metric of torchmetrics; a row that is nan is seen in it."""

    _total: Tensor | float = 0.0
    _rows: int = 0

    @property
    def update_called(self) -> bool:
        """Whether a row was counted."""
        return self._rows > 0

    def update(self, rows: Tensor) -> None:
        """Count rows (N,), which may be none; their sum stays where they lie, and nothing waits for a device."""
        self._total = self._total + rows.sum()
        self._rows += len(rows)

    def compute(self) -> Tensor | float:
        """The mean of all rows so far, of which there is one."""
        return self._total / self._rows


def made(name: str, classes: int, device: torch.device) -> Any:
    """A fresh metric: a mean, or one of torchmetrics, whose import takes seconds; most runs count means alone."""
    if name in MEANS:
        return Mean()
    import torchmetrics

    kind, arguments = CLASSES[name]
    return getattr(torchmetrics.classification, kind)(num_classes=classes, **arguments).to(device)


def count(name: str, metric: Any, logits: Tensor, labels: Tensor) -> None:
    """Add rows (N, C) with their labels (N,) to a metric; no row at all adds nothing.

    Raises DataError for a metric of classes whose number has changed.
    """
    if not len(labels):
        return
    if name not in MEANS:
        if logits.shape[-1] != metric.num_classes:
            raise DataError(
                f"callback 'evaluate': {name!r} is of classes, and logits have {logits.shape[-1]} of them after "
                f"{metric.num_classes}; where their number varies there is {', '.join(MEANS)}"
            )
        metric.update(logits, labels)
    else:
        right = logits.argmax(dim=-1) == labels
        metric.update(cross_entropy(logits, labels, reduction="none") if name == "loss" else right.float())


def exact(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Whether every label of a sample is met in all of its logits, 1.0 or 0.0; (N,), of the samples with a label."""
    right, there = [], []
    for logits, labels in pairs:
        known = labels != IGNORED
        met = (logits.argmax(dim=-1) == labels) | ~known
        right.append(met.reshape(len(met), -1).all(dim=1))
        there.append(known.reshape(len(known), -1).any(dim=1))
    return torch.stack(right).all(dim=0)[torch.stack(there).any(dim=0)].float()
