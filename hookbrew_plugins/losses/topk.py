"""Divergence over the teacher's likeliest classes, the rest in one bucket. B batch, L tokens, C classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from hookbrew.plugin import at_least, options
from hookbrew_plugins.losses.divergences import Softened
from hookbrew_plugins.losses.soften import divergence, log_sum, softened, squared, summed


@options
class TopKTail(Softened):
    """T^2 KL over the k classes that the teacher finds likeliest and one bucket for all others.

    Mean over valid positions. The bucket has the mass that each side leaves to the others. Without it the k
    classes would have to be normalised, which is biased, and below 0 against a student that is not. It never
    exceeds `kl`, and equals it where k reaches the number of classes.
    """

    takes: ClassVar[str] = "logits"
    likeliest: ClassVar[str] = "k"

    k: int = at_least(1, 64)
    """How many of the teacher's classes keep a probability of their own."""

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return self.softly(topk_tail, k=self.k)


def topk_tail(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    k: int = 64,
    temperature: float = 1.0,
    t_squared: bool = True,
    standardize: bool = False,
) -> Tensor:
    """T^2 (sum_{c in K} p_c log(p_c / q_c) + p_R log(p_R / q_R)), mean over valid positions, a scalar.

    K: the k classes of the highest p, R: all others together, p_R = sum_{c not in K} p_c, q_R as p_R.
    student, teacher: logits (B, C) or (B, L, C); the teacher receives no gradient. mask: bool (B,) or (B, L).
    standardize: see `standardized`.
    The divergence of a coarser partition: Cover and Thomas, Elements of Information Theory, section 2.7.

    Raises ObjectiveError when the shapes do not fit.
    """
    log_q, log_p = softened(student, teacher, mask, temperature, standardize)
    kept = log_p.topk(min(k, log_p.shape[-1]), dim=-1).indices
    parts = divergence(bucketed(log_p, kept), bucketed(log_q, kept))
    return summed(parts, mask, squared(temperature, t_squared))


def bucketed(logs: Tensor, kept: Tensor) -> Tensor:
    """log p of the kept classes, and of all others together: (..., C) to (..., K + 1), K classes kept."""
    tail = log_sum(logs.scatter(-1, kept, -torch.inf))  # a sum, not 1 - sum: that cancels where the tail is small
    return torch.cat([logs.gather(-1, kept), tail.unsqueeze(-1)], dim=-1)
