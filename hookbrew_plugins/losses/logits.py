"""Losses on logits. B batch, L tokens, C classes; softmax runs over the last dimension, in float32 or wider.

p = softmax(teacher / T), q = softmax(student / T), T the temperature.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from hookbrew.objective import valid_mean
from hookbrew.plugin import options, positive
from hookbrew_plugins.losses.shapes import paired


@options
class KDCE:
    """Soft cross-entropy, -T^2 sum_c p_c log q_c, mean over valid positions (Hinton et al. 2015, section 2).

    Its gradient is that of the KL divergence; its value at agreement is the entropy of the teacher, not 0.
    """

    takes: ClassVar[str] = "logits"
    exempt: ClassVar[dict[str, str]] = {
        "zero_at_agreement": "a cross-entropy has the teacher's entropy left at agreement; its gradient is 0 there"
    }

    temperature: float = positive(4.0)
    """T: divides the logits of both; higher is softer."""
    t_squared: bool = True
    """Multiply by T^2, so that the gradient keeps its size whatever T is; false is what TextBrewer does."""

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return partial(kd_ce, temperature=self.temperature, t_squared=self.t_squared)


@options
class KDMSE:
    """Mean squared difference of the logits, over classes and valid positions (Ba and Caruana 2014, eq. 1).

    A class that is -inf on both sides is left out, as the padding of a vocabulary is.
    """

    takes: ClassVar[str] = "logits"
    exempt: ClassVar[dict[str, str]] = {
        "impossible_class": "a mean over classes has one more equal pair; only -inf on both sides leaves it out"
    }

    temperature: float = positive(1.0)
    """T: divides the logits of both; it changes nothing while `t_squared` multiplies it back."""
    t_squared: bool = True
    """Multiply by T^2; false is what TextBrewer does, the error then shrinks with T^2."""

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return partial(kd_mse, temperature=self.temperature, t_squared=self.t_squared)


def kd_ce(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, temperature: float = 4.0, t_squared: bool = True
) -> Tensor:
    """-T^2 sum_c p_c log q_c, mean over valid positions, a scalar.

    student, teacher: logits (B, C) or (B, L, C); the teacher receives no gradient. mask: bool (B,) or (B, L).
    A class that the teacher rules out with -inf adds nothing, whatever the student says.
    T^2 keeps the gradient's size as T grows: Hinton, Vinyals, Dean 2015, section 2.

    Raises ObjectiveError when the shapes do not fit.
    """
    student, teacher = paired(student, teacher, mask, "classes")
    soft = torch.softmax(teacher / temperature, dim=-1)
    logs = torch.log_softmax(student / temperature, dim=-1)
    entropy = -(soft * logs.masked_fill(soft == 0, 0.0)).sum(dim=-1)  # 0 * -inf would be nan
    return valid_mean(entropy, mask) * scale(temperature, t_squared)


def kd_mse(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, temperature: float = 1.0, t_squared: bool = True
) -> Tensor:
    """T^2 mean_c (student_c / T - teacher_c / T)^2, mean over valid positions, a scalar.

    student, teacher: logits (B, C) or (B, L, C); the teacher receives no gradient. mask: bool (B,) or (B, L).
    Classes that are -inf on both sides are not counted. Ba and Caruana 2014, eq. 1; without T^2 TextBrewer's.

    Raises ObjectiveError when the shapes do not fit.
    """
    student, teacher = paired(student, teacher, mask, "classes")
    absent = torch.isneginf(student) & torch.isneginf(teacher)
    error = (student.masked_fill(absent, 0.0) - teacher.masked_fill(absent, 0.0)) / temperature
    mean = error.square().sum(dim=-1) / (~absent).sum(dim=-1).clamp(min=1)
    return valid_mean(mean, mask) * scale(temperature, t_squared)


def scale(temperature: float, t_squared: bool) -> float:
    """T^2, or 1 when it is switched off."""
    return temperature**2 if t_squared else 1.0
