"""Numbers of an evaluation, counted by torchmetrics over whole data sets, never averaged over batches.

N positions or samples with a label, C classes.
"""

from __future__ import annotations

from typing import Any

import attrs
from attrs.validators import deep_iterable, in_
from torch import Tensor
from torch.nn.functional import cross_entropy

from hookbrew.errors import DataError
from hookbrew.loop import State
from hookbrew.plugin import options

IGNORED = -100
"""The label of positions and samples that have none."""

CLASSES: dict[str, tuple[str, dict[str, str]]] = {
    "accuracy": ("MulticlassAccuracy", {"average": "micro"}),
    "calibration_error": ("MulticlassCalibrationError", {}),
    "f1": ("MulticlassF1Score", {"average": "macro"}),
    "precision": ("MulticlassPrecision", {"average": "macro"}),
    "recall": ("MulticlassRecall", {"average": "macro"}),
}
"""Names of ours for classes of torchmetrics with their arguments."""


@options
class Evaluate:
    """Counts metrics of the student over the evaluation data, by the batch's labels."""

    metrics: list[str] = attrs.field(factory=lambda: ["accuracy"], validator=deep_iterable(in_([*CLASSES, "loss"])))
    """Any of accuracy, calibration_error, f1, precision, recall (over classes: the mean) and loss (cross-entropy)."""

    def build(self) -> Counter:
        """The callback."""
        return Counter(tuple(self.metrics))


@attrs.define(eq=False)
class Counter:
    """The metrics are made at the first batch, when the number of classes is known."""

    _names: tuple[str, ...]
    _counting: dict[str, Any] = attrs.field(factory=dict)

    def eval_start(self, state: State) -> None:
        """Forget the last evaluation."""
        self._counting = {}

    def eval_batch_end(self, state: State) -> None:
        """Count one batch; raises DataError when it has no labels."""
        if state.labels is None or state.logits is None:
            raise DataError(f"callback 'evaluate' needs labels in the evaluation data; the batch has {[*state.batch]}")
        logits, labels = flat(state.logits, state.labels)
        if not self._counting:
            self._counting = {name: made(name, logits.shape[-1]).to(logits.device) for name in self._names}
        for name, metric in self._counting.items():
            if name != "loss":
                metric.update(logits, labels)
            elif len(labels):
                metric.update(cross_entropy(logits, labels), weight=len(labels))

    def eval_end(self, state: State) -> None:
        """Give the numbers to whoever comes later in the order of callbacks."""
        state.metrics |= {name: float(metric.compute()) for name, metric in self._counting.items()}


def made(name: str, classes: int) -> Any:
    """A fresh metric of torchmetrics; its import takes seconds, so it is not made sooner."""
    import torchmetrics

    if name == "loss":
        return torchmetrics.MeanMetric()
    kind, arguments = CLASSES[name]
    return getattr(torchmetrics.classification, kind)(num_classes=classes, **arguments)


def flat(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, C), fp32, and labels (N,) of the positions that have a label.

    Raises DataError when there is not one label for each row of logits.
    """
    if logits.shape[:-1] != labels.shape:
        raise DataError(
            f"callback 'evaluate': labels {tuple(labels.shape)} do not fit logits {tuple(logits.shape)}; "
            "expected one label for each row"
        )
    there = labels != IGNORED
    return logits[there].float(), labels[there]
