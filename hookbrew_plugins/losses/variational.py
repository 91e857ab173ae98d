"""A loss that learns how much of the teacher the student can tell. B batch, L tokens, D features."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from hookbrew.errors import ObjectiveError
from hookbrew.objective import valid_mean
from hookbrew.plugin import at_least, options, positive
from hookbrew_plugins.losses.shapes import paired


@options
class VID:
    """Negative log-likelihood of the teacher's features, normal around the student's with a variance that is learned.

    Variational information distillation (Ahn et al. 2019, section 2); the projection is its mean.
    One table has one variance for all the layers it names: write a table for each layer.
    """

    takes: ClassVar[str] = "hidden"
    exempt: ClassVar[dict[str, str]] = {
        "zero_at_agreement": "a likelihood keeps the log of its variance; the student's gradient is 0 at agreement"
    }

    features: int = at_least(1, 1)
    """How many variances there are: one for all features, or as many as the teacher has features, as in the paper."""
    variance: float = positive(5.0)
    """What they are at first; 5 is RepDistiller's."""
    epsilon: float = positive(1e-5)
    """The smallest variance."""

    def build(self) -> Likelihood:
        """The loss, a module of student, teacher and mask that is trained."""
        return Likelihood(self.features, self.variance, self.epsilon)


class Likelihood(nn.Module):
    """log(v) / 2 + (teacher - student)^2 / (2 v), mean over features and valid positions.

    v = softplus(raw) + epsilon, with raw a parameter (1,) or (D,).
    """

    def __init__(self, features: int, variance: float, epsilon: float) -> None:
        super().__init__()
        if variance <= epsilon:
            raise ObjectiveError(f"variance = {variance:g} is not above epsilon = {epsilon:g}")
        self.epsilon = epsilon
        self.raw = nn.Parameter(torch.full((features,), inverted(variance - epsilon)))

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        """A scalar. student, teacher: (B, L, D) or (B, D); the teacher receives no gradient. mask: bool (B, L) or (B,).

        Raises ObjectiveError when the shapes do not fit, or there is another number of variances than 1 or D.
        """
        student, teacher = paired(student, teacher, mask, "features")
        if len(self.raw) not in (1, student.shape[-1]):
            raise ObjectiveError(
                f"features = {len(self.raw)}, and the tensors have {student.shape[-1]}; write 1 or that number"
            )
        variance = nn.functional.softplus(self.raw) + self.epsilon
        error = (teacher - student).square() / variance
        return valid_mean(0.5 * (variance.log() + error).mean(dim=-1), mask)


def inverted(value: float) -> float:
    """x with softplus(x) = value."""
    return value + math.log(-math.expm1(-value))
