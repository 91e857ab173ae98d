"""Losses on labels. B batch, L tokens, C classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from hookbrew.errors import ObjectiveError
from hookbrew.objective import Chunked, glance, valid_mean
from hookbrew.plugin import fraction, options
from hookbrew_plugins.losses.chunked import told
from hookbrew_plugins.losses.shapes import IGNORED, blanked, require_mask, require_rows, widened

NLL = torch.ops.aten.nll_loss_forward.default
"""What nll_loss is made of: it tells how many labels it counted, too."""
SUM = 2
"""The number by which it knows the reduction `sum`."""


@options
class CE:
    """Cross-entropy with the true labels, -log q_y at temperature 1, mean over the labelled valid positions.

    Soft labels, a probability for each class, count as -sum_c y_c log q_c.
    """

    takes: ClassVar[str] = "logits"
    soft: ClassVar[bool] = True

    label_smoothing: float = fraction(0.0)
    """The share of each label that is spread evenly over all possible classes (Szegedy et al. 2016, section 7)."""

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, labels and mask."""
        return partial(ce, label_smoothing=self.label_smoothing)

    def chunked(self) -> Chunked | None:
        """From hidden states and a head, unless labels are smoothed."""
        return None if self.label_smoothing else told("ce")


def ce(student: Tensor, labels: Tensor, mask: Tensor | None = None, *, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - s) log q_y - s mean_c log q_c, mean over the valid positions whose label is not -100, a scalar.

    student: logits (B, C) or (B, L, C), q their softmax. labels: long (B,) or (B, L). mask: bool, (B,) or (B, L).
    Or soft labels, floats y shaped as the student: -(1 - s) sum_c y_c log q_c - s (sum_c y_c) mean_c log q_c, mean over
    the valid rows that do not sum to 0; one below 0, as -100, is 0.
    Classes that are -inf count neither in q nor in mean_c.

    Raises ObjectiveError when the shapes do not fit or the labels are bool.
    """
    if labels.is_floating_point():
        return soft_ce(student, labels, mask, label_smoothing=label_smoothing)
    require_labels(student, labels)
    if mask is None and not label_smoothing and (numbers := glance(labels)) is not None and IGNORED not in numbers:
        rows = widened(student)
        if labels.dim() > 1:
            rows, labels = rows.flatten(0, -2), labels.flatten()
        return functional.cross_entropy(rows, labels.long())
    require_mask(student, mask)
    labels = labels.long() if mask is None else torch.where(mask, labels.long(), IGNORED)
    absent = labels == IGNORED
    logs = torch.log_softmax(widened(student).masked_fill(absent.unsqueeze(-1), 0.0), dim=-1)
    total, count = NLL(logs.flatten(0, -2), labels.flatten(), None, SUM, IGNORED)
    if label_smoothing:
        rest = spread(logs).masked_fill(absent, 0.0).sum()
        total = (1.0 - label_smoothing) * total - label_smoothing * rest
    mean: Tensor = total / count.clamp(min=1)
    return mean


def soft_ce(student: Tensor, labels: Tensor, mask: Tensor | None, *, label_smoothing: float) -> Tensor:
    """`ce` with labels that are floats, (B, C) or (B, L, C)."""
    require_soft(student, labels)
    require_mask(student, mask)
    student = widened(student)
    soft = blanked(labels.detach().to(student.dtype).clamp(min=0.0), mask)
    mass = soft.sum(dim=-1)
    valid = mass > 0
    logs = torch.log_softmax(blanked(student, valid), dim=-1)
    hit = (soft * logs.masked_fill(soft == 0, 0.0)).sum(dim=-1)  # 0 * -inf would be nan
    if label_smoothing:
        hit = (1.0 - label_smoothing) * hit + label_smoothing * mass * spread(logs)
    return valid_mean(-hit, valid)


def spread(logs: Tensor) -> Tensor:
    """The mean over the classes that are not -inf: (..., C) to (...)."""
    absent = torch.isneginf(logs)
    return logs.masked_fill(absent, 0.0).sum(dim=-1) / (~absent).sum(dim=-1).clamp(min=1)


def require_labels(student: Tensor, labels: Tensor) -> None:
    """Raise ObjectiveError unless there is an integer label for each position of the student."""
    require_rows(student, "classes")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ObjectiveError(f"labels are {labels.dtype}; expected torch.long, the number of each class")
    if labels.shape != student.shape[:-1]:
        raise ObjectiveError(
            f"labels are {tuple(labels.shape)}; expected {tuple(student.shape[:-1])}, the student's shape "
            f"{tuple(student.shape)} without its classes"
        )


def require_soft(student: Tensor, labels: Tensor) -> None:
    """Raise ObjectiveError unless there is a soft label for each class and position of the student."""
    require_rows(student, "classes")
    if labels.shape != student.shape:
        raise ObjectiveError(
            f"soft labels, {labels.dtype}, are {tuple(labels.shape)}; expected {tuple(student.shape)}, as the student, "
            "or torch.long, the number of each class"
        )
