"""Losses that judge the class of the label and the other classes apart. B batch, L tokens, C classes.

y is the label, p = softmax(teacher / T), q = softmax(student / T). All run on logarithms: the authors' codes take
the logarithm of a sum of probabilities, which is -inf once it underflows, and subtract 1,000 from the label's
logit, which is not enough for large ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from hookbrew.objective import valid_mean
from hookbrew.plugin import at_least, options, positive
from hookbrew_plugins.losses.labels import require_labels
from hookbrew_plugins.losses.shapes import IGNORED, require_mask
from hookbrew_plugins.losses.soften import divergence, log_soft, log_sum, squared, tempered


@options
class DKD:
    """Decoupled distillation, T^2 (alpha TCKD + beta NCKD), mean over labelled valid positions.

    TCKD is the divergence in how probable the label is, NCKD that among the other classes, which `kl` weighs by
    what the teacher leaves to them (Zhao et al. 2022). The authors let the weight grow over the first 20 epochs
    on CIFAR, 1 on ImageNet.
    """

    takes: ClassVar[str] = "logits"

    temperature: float = positive(4.0)
    """T: divides the logits of both; higher is softer."""
    t_squared: bool = True
    """Multiply by T^2, so that the gradient keeps its size whatever T is."""
    standardize: bool = False
    """Give the logits of each row mean 0 and deviation 1 before T divides them (Sun et al. 2024)."""
    alpha: float = at_least(0.0, 1.0)
    """The weight of the label against the rest."""
    beta: float = at_least(0.0, 8.0)
    """The weight of the classes other than the label; the authors take 8 on CIFAR, 0.5 on ImageNet."""

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher, labels and mask."""
        common = partial(dkd, temperature=self.temperature, t_squared=self.t_squared, standardize=self.standardize)
        return partial(common, alpha=self.alpha, beta=self.beta)


@options
class NKD:
    """Normalised distillation, -p_y log q_y at T = 1, plus gamma T^2 times the soft cross-entropy of the others.

    The others are normalised without the label; mean over labelled valid positions (Yang et al. 2023). The authors
    add it to a cross-entropy with the labels.
    """

    takes: ClassVar[str] = "logits"
    exempt: ClassVar[dict[str, str]] = {
        "zero_at_agreement": "a cross-entropy has the teacher's entropy left at agreement",
        "flat_at_agreement": "its first part goes on pulling towards the label, as a cross-entropy with labels does",
    }

    temperature: float = positive(1.0)
    """T: divides the logits of the classes other than the label; higher is softer."""
    t_squared: bool = True
    """Multiply the part of the other classes by T^2, so that its gradient keeps its size whatever T is."""
    standardize: bool = False
    """Give the logits of each row mean 0 and deviation 1 before T divides them (Sun et al. 2024)."""
    gamma: float = at_least(0.0, 1.5)
    """The weight of the classes other than the label."""

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher, labels and mask."""
        common = partial(nkd, temperature=self.temperature, t_squared=self.t_squared, standardize=self.standardize)
        return partial(common, gamma=self.gamma)


def dkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    t_squared: bool = True,
    standardize: bool = False,
) -> Tensor:
    """T^2 (alpha KL(b_t || b_s) + beta KL(r_t || r_s)), mean over valid positions whose label is not -100, a scalar.

    b = (p_y, 1 - p_y) and r_c = p_c / (1 - p_y) for c != y, of the teacher (t) and, with q, of the student (s).
    student, teacher: logits (B, C) or (B, L, C); the teacher receives no gradient. labels: long (B,) or (B, L).
    mask: bool, as labels. standardize: see `standardized`. Zhao et al. 2022, Decoupled Knowledge Distillation.

    Raises ObjectiveError when the shapes do not fit or the labels are no integers.
    """
    valid = labelled(student, labels, mask)
    student, teacher = tempered(student, teacher, valid, temperature, standardize)
    gold = labels.masked_fill(~valid, 0).long()
    target = divergence(binary(teacher, gold), binary(student, gold)).sum(dim=-1)
    rest = divergence(log_soft(others(teacher, gold)), log_soft(others(student, gold))).sum(dim=-1)
    return valid_mean((alpha * target + beta * rest) * squared(temperature, t_squared), valid)


def nkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    gamma: float = 1.5,
    temperature: float = 1.0,
    t_squared: bool = True,
    standardize: bool = False,
) -> Tensor:
    """-p_y log q_y - gamma T^2 sum_{c != y} r^t_c log r^s_c, mean over valid positions with a label, a scalar.

    p_y, q_y at temperature 1; r^t, r^s the softmax at temperature T of teacher and student without the class y.
    student, teacher: logits (B, C) or (B, L, C); the teacher receives no gradient. labels: long (B,) or (B, L), -100
    where there is none. mask: bool, as labels. standardize: see `standardized`. Yang et al. 2023, From Knowledge
    Distillation to Self-Knowledge Distillation, NKD.

    Raises ObjectiveError when the shapes do not fit or the labels are no integers.
    """
    valid = labelled(student, labels, mask)
    student, teacher = tempered(student, teacher, valid, 1.0, standardize)
    gold = labels.masked_fill(~valid, 0).long()
    target = soft_entropy(at(log_soft(teacher), gold), at(log_soft(student), gold))
    ours, theirs = (log_soft(others(logits, gold) / temperature) for logits in (student, teacher))
    rest = soft_entropy(theirs, ours).sum(dim=-1) * squared(temperature, t_squared)
    return valid_mean(target + gamma * rest, valid)


def labelled(student: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
    """Where there is a label that counts, bool (...); raises ObjectiveError when the shapes do not fit."""
    require_labels(student, labels)
    require_mask(student, mask)
    return labels != IGNORED if mask is None else mask & (labels != IGNORED)


def binary(logits: Tensor, gold: Tensor) -> Tensor:
    """The logarithms of the label's probability and of all others' together, (..., C) to (..., 2)."""
    logs = log_soft(logits)
    return torch.stack([at(logs, gold), log_sum(others(logs, gold))], dim=-1)


def others(logits: Tensor, gold: Tensor) -> Tensor:
    """(..., C) with -inf at the label."""
    return logits.scatter(-1, gold.unsqueeze(-1), -torch.inf)


def at(logs: Tensor, gold: Tensor) -> Tensor:
    """What stands at the label, (..., C) to (...)."""
    return logs.gather(-1, gold.unsqueeze(-1)).squeeze(-1)


def soft_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """-p log q, of one shape with both; 0 where p is, whatever q says."""
    p = log_p.exp()
    return -p * log_q.masked_fill(p == 0, 0.0)  # 0 * -inf would be nan
