"""Losses on logits. B batch, L tokens, C classes; softmax runs over the last dimension, in float32 or wider.

p = softmax(teacher / T), q = softmax(student / T), T the temperature.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from hookbrew.objective import Chunked, valid_mean
from hookbrew.plugin import options, positive
from hookbrew_plugins.losses.soften import Temperature, expected, squared, tempered
from hookbrew_plugins.losses.sparing import sparing
from hookbrew_plugins.losses.teaching import Taught


@options
class KDCE(Taught):
    """Soft cross-entropy, -T^2 sum_c p_c log q_c, mean over valid positions (Hinton et al. 2015, section 2).

    Its gradient is that of the KL divergence; its value at agreement is the entropy of the teacher, not 0.
    """

    takes: ClassVar[str] = "logits"
    exempt: ClassVar[dict[str, str]] = {
        "zero_at_agreement": "a cross-entropy has the teacher's entropy left at agreement; its gradient is 0 there"
    }

    @property
    def linear(self) -> bool:
        """Whether it is linear in the teacher's probabilities: classes drawn from these then stand for them."""
        return not (self.standardize or self.probability_shift or self.dynamic)

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask, and labels with `probability_shift`."""
        return self.around(kd_ce)

    def chunked(self) -> Chunked | None:
        """From hidden states and heads, where no option looks at whole rows."""
        return self.walked("kd_ce")


@options
class KDMSE(Taught):
    """Mean squared difference of the logits, over classes and valid positions (Ba and Caruana 2014, eq. 1).

    A class that is -inf on both sides is left out, as the padding of a vocabulary is. With `t_squared` neither
    `temperature` nor `dynamic` changes anything.
    """

    takes: ClassVar[str] = "logits"
    exempt: ClassVar[dict[str, str]] = {
        "impossible_class": "a mean over classes has one more equal pair; only -inf on both sides leaves it out"
    }

    temperature: float = positive(1.0)
    """T: divides the logits of both; it changes nothing while `t_squared` multiplies it back."""

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask, and labels with `probability_shift`."""
        return self.around(kd_mse)


@sparing
def kd_ce(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: Temperature = 4.0,
    t_squared: bool = True,
    standardize: bool = False,
) -> Tensor:
    """-T^2 sum_c p_c log q_c, mean over valid positions, a scalar.

    student, teacher: logits (B, C) or (B, L, C); the teacher receives no gradient. mask: bool (B,) or (B, L).
    temperature: a number, or one for each position, as mask. standardize: see `standardized`.
    A class that the teacher rules out with -inf adds nothing, whatever the student says.
    T^2 keeps the gradient's size as T grows: Hinton, Vinyals, Dean 2015, section 2.

    Raises ObjectiveError when the shapes do not fit.
    """
    student, teacher = tempered(student, teacher, mask, temperature, standardize)
    soft, log_q = teacher.softmax(-1), student.log_softmax(-1)
    return expected(soft, log_q, mask, -squared(temperature, t_squared))


def kd_mse(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: Temperature = 1.0,
    t_squared: bool = True,
    standardize: bool = False,
) -> Tensor:
    """T^2 mean_c (student_c / T - teacher_c / T)^2, mean over valid positions, a scalar.

    student, teacher: logits (B, C) or (B, L, C); the teacher receives no gradient. mask: bool (B,) or (B, L).
    temperature: a number, or one for each position, as mask. standardize: see `standardized`.
    Classes that are -inf on both sides are not counted. Ba and Caruana 2014, eq. 1; without T^2 TextBrewer's.

    Raises ObjectiveError when the shapes do not fit.
    """
    student, teacher = tempered(student, teacher, mask, temperature, standardize)
    absent = torch.isneginf(student) & torch.isneginf(teacher)
    error = student.masked_fill(absent, 0.0) - teacher.masked_fill(absent, 0.0)
    mean = error.square().sum(dim=-1) / (~absent).sum(dim=-1).clamp(min=1)
    return valid_mean(mean * squared(temperature, t_squared), mask)
