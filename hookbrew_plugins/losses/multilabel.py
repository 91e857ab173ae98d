"""Losses for classes that do not exclude each other: each has a sigmoid of its own. B batch, L tokens, C classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from hookbrew.errors import ObjectiveError
from hookbrew.objective import valid_mean
from hookbrew.plugin import options, positive
from hookbrew_plugins.losses.shapes import IGNORED, blanked, require_mask, require_rows, widened
from hookbrew_plugins.losses.soften import squared, tempered

AVERAGED = {"impossible_class": "a mean over classes has one more that is right; only -inf leaves a class out"}
"""What a loss with a mean over classes gives up."""


@options
class BCE:
    """Binary cross-entropy of each class with hard labels, mean over classes and labelled valid positions.

    The labels are one number from 0 to 1 for each class, as of samples with several classes, or the number of
    the one class, which stands for 1 there and 0 elsewhere.
    """

    takes: ClassVar[str] = "logits"
    exempt: ClassVar[dict[str, str]] = AVERAGED

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, labels and mask."""
        return bce


@options
class KDBCE:
    """Binary cross-entropy of each class with the teacher's, T^2 times the mean over classes and valid positions.

    `kd_ce` for classes that do not exclude each other: its value at agreement is the teacher's entropy, not 0.
    There is no `standardize`: it takes away the offset of a row, which no softmax reads, and every sigmoid does.
    """

    takes: ClassVar[str] = "logits"
    exempt: ClassVar[dict[str, str]] = {
        **AVERAGED,
        "zero_at_agreement": "a cross-entropy has the teacher's entropy left at agreement; its gradient is 0 there",
    }

    temperature: float = positive(1.0)
    """T: divides the logits of both; higher is softer."""
    t_squared: bool = True
    """Multiply by T^2, so that the gradient keeps its size whatever T is."""

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return partial(kd_bce, temperature=self.temperature, t_squared=self.t_squared)


def bce(student: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """-y_c log s(z_c) - (1 - y_c) log(1 - s(z_c)), s the sigmoid, mean over classes and valid positions, a scalar.

    student: logits z, (B, C) or (B, L, C). labels: y, of that shape, from 0 to 1; one below 0, as -100, leaves out
    its class. Or integers (B,) or (B, L), the number of the one class, -100 where there is none.
    mask: bool (B,) or (B, L). A class that is -inf, and not a label, is not counted.

    Raises ObjectiveError when the shapes do not fit.
    """
    require_rows(student, "classes")
    require_mask(student, mask)
    wanted, valid = hot(student, labels, mask)
    known = blanked(widened(student), valid).masked_fill(wanted < 0, -torch.inf)
    return valid_mean(binary(known, wanted.clamp(min=0.0)), valid)


def kd_bce(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, temperature: float = 1.0, t_squared: bool = True
) -> Tensor:
    """T^2 mean_c (-p_c log q_c - (1 - p_c) log(1 - q_c)), mean over valid positions, a scalar.

    p = sigmoid(teacher / T), q = sigmoid(student / T). student, teacher: logits (B, C) or (B, L, C); the teacher
    receives no gradient. mask: bool (B,) or (B, L). A class that is -inf on both sides is not counted.
    Hinton, Vinyals, Dean 2015, section 2, with two classes in the place of each.

    Raises ObjectiveError when the shapes do not fit.
    """
    student, teacher = tempered(student, teacher, mask, temperature)
    return valid_mean(binary(student, torch.sigmoid(teacher)) * squared(temperature, t_squared), mask)


def binary(logits: Tensor, wanted: Tensor) -> Tensor:
    """The mean over classes of -y log s(z) - (1 - y) log s(-z), (..., C) to (...).

    A class with z = -inf and y = 0 is left out.
    """
    absent = torch.isneginf(logits) & (wanted == 0)
    known = logits.masked_fill(absent, 0.0)
    logs = wanted * functional.logsigmoid(known) + (1.0 - wanted) * functional.logsigmoid(-known)
    each = -logs.masked_fill(absent, 0.0)
    return each.sum(dim=-1) / (~absent).sum(dim=-1).clamp(min=1)


def hot(student: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A number for each class, (..., C), in the precision of the loss, and where there are labels, bool (...).

    Raises ObjectiveError when the labels are neither of the student's shape nor class numbers for its positions.
    """
    dtype = widened(student).dtype
    if labels.shape == student.shape:
        return labels.to(dtype), mask
    if labels.shape != student.shape[:-1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ObjectiveError(
            f"labels are {labels.dtype} {tuple(labels.shape)}; expected {tuple(student.shape)}, from 0 to 1 for each "
            f"class, or torch.long {tuple(student.shape[:-1])}, the number of the one class"
        )
    there = labels != IGNORED if mask is None else mask & (labels != IGNORED)
    return functional.one_hot(labels.masked_fill(~there, 0).long(), student.shape[-1]).to(dtype), there
