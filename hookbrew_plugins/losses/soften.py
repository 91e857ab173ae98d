"""What losses on logits share: softened distributions, as logarithms, and the divergence between two.

B batch, L tokens, C classes; log p is the teacher's, log q the student's. A class that is -inf has
probability 0, in its gradient too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hookbrew.errors import ObjectiveError
from hookbrew.objective import glance, valid_mean
from hookbrew_plugins.losses.shapes import paired

FLAT = 1e-7
"""A row of logits that deviates less than this has no shape to standardize; the authors' code adds it instead."""

Temperature = float | Tensor
"""One for all rows, or one for each, (...)."""


def softened(
    student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: Temperature = 1.0, standardize: bool = False
) -> tuple[Tensor, Tensor]:
    """log q and log p, (..., C), in float32 or wider; the teacher detached, masked rows uniform.

    Raises ObjectiveError when the shapes do not fit.
    """
    student, teacher = tempered(student, teacher, mask, temperature, standardize)
    return torch.log_softmax(student, dim=-1), torch.log_softmax(teacher, dim=-1)


def tempered(
    student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: Temperature = 1.0, standardize: bool = False
) -> tuple[Tensor, Tensor]:
    """Both logits, (..., C), divided by the temperature, standardized before if wanted; zeros where masked.

    Raises ObjectiveError when the shapes do not fit.
    """
    student, teacher = paired(student, teacher, mask, "classes")
    if standardize:
        student, teacher = standardized(student), standardized(teacher)
    if isinstance(temperature, Tensor):
        require_temperature(student, temperature)
        temperature = temperature.unsqueeze(-1)
    elif temperature == 1:
        return student, teacher
    return student / temperature, teacher / temperature


def standardized(logits: Tensor) -> Tensor:
    """(z - mean z) / std z over the classes of each row, (..., C) to (..., C), -inf left out and kept.

    Sun et al. 2024, Logit Standardization in Knowledge Distillation; std divides by C - 1, as the
    authors' code does. A row without deviation gives zeros and no gradient: dividing by next to nothing would
    give one of size 1 / epsilon.
    """
    absent = torch.isneginf(logits)
    there = (~absent).sum(dim=-1, keepdim=True).to(logits.dtype)  # the root of an integer is float32
    known = logits.masked_fill(absent, 0.0)
    centred = (known - known.sum(dim=-1, keepdim=True) / there.clamp(min=1)).masked_fill(absent, 0.0)
    spread = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / (there - 1).clamp(min=1).sqrt()
    flat = spread < FLAT
    scores: Tensor = (centred / spread.masked_fill(flat, 1.0)).masked_fill(flat, 0.0)
    return scores.masked_fill(absent, -torch.inf)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p_c (log p_c - log q_c), (..., C), whose sum over classes is KL(p || q); a class with p = 0 adds nothing.

    Infinite where q is 0 and p is not.
    """
    p = log_p.exp()
    return p * (log_p - log_q).masked_fill(p.logical_not(), 0.0)  # 0 * inf would be nan


def log_sum(logs: Tensor) -> Tensor:
    """log sum_c exp, (..., C) to (...); -inf without a gradient where every class is -inf, which is nan in torch."""
    void = torch.isneginf(logs).all(dim=-1)
    return torch.logsumexp(logs.masked_fill(void.unsqueeze(-1), 0.0), dim=-1).masked_fill(void, -torch.inf)


def log_soft(logits: Tensor) -> Tensor:
    """log softmax, (..., C); -inf without a gradient where every class is -inf, which is nan in torch."""
    void = torch.isneginf(logits).all(dim=-1, keepdim=True)
    return torch.log_softmax(logits.masked_fill(void, 0.0), dim=-1).masked_fill(void, -torch.inf)


def squared(temperature: Temperature, t_squared: bool) -> Temperature:
    """T^2, or 1 when it is switched off."""
    return temperature**2 if t_squared else 1.0


def summed(parts: Tensor, mask: Tensor | None, scale: Temperature) -> Tensor:
    """scale sum_c parts, mean over the valid rows: (..., C) to a scalar. scale: a number, or one for each row."""
    if mask is None and not isinstance(scale, Tensor):  # one sum instead of two
        return parts.sum() * (scale * parts.shape[-1] / max(1, parts.numel()))
    return valid_mean(parts.sum(dim=-1) * scale, mask)


def expected(p: Tensor, values: Tensor, mask: Tensor | None, scale: Temperature) -> Tensor:
    """scale sum_c p_c values_c, mean over the valid rows: (..., C) both, to a scalar; a class with p = 0 adds nothing.

    Only a class with p = 0 and a value that is not finite needs care, and it makes nan of the sum: where the host can
    see that there is none, it takes none.
    """
    if p.is_cpu:
        plain = summed(p * values, mask, scale)
        number = glance(plain)
        if number is not None and not math.isnan(number):
            return plain
    return summed(p * values.masked_fill(p.logical_not(), 0.0), mask, scale)


def require_temperature(student: Tensor, temperature: Tensor) -> None:
    """Raise ObjectiveError unless there is one temperature for each position of the student."""
    if temperature.shape != student.shape[:-1]:
        raise ObjectiveError(
            f"temperature is {tuple(temperature.shape)}; expected {tuple(student.shape[:-1])}, one for each position"
        )
