"""Correlation between the two distributions instead of equality. B batch, L tokens, C classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from hookbrew.objective import valid_mean
from hookbrew.plugin import at_least, options, positive
from hookbrew_plugins.losses.soften import tempered


@options
class Dist:
    """T^2 (beta (1 - r over classes) + gamma (1 - r over positions)), r Pearson's correlation (Huang et al. 2022).

    Over the classes of each valid position, and over all valid positions of the batch for each class. Softmax at T.
    A larger batch, without accumulation, makes the second more exact. A correlation has no scale of its own, but the
    softmax in it has one, which `standardize` takes from each row.
    """

    takes: ClassVar[str] = "logits"
    exempt: ClassVar[dict[str, str]] = {
        "micro_batches": "a correlation over the positions of a batch is not a mean over its parts",
        "impossible_class": "a correlation over classes has one more pair; only -inf on both sides leaves it out",
        "temperature_scale": "a correlation does not shrink with T; its T^2 is the authors', and `t_squared` drops it",
    }

    temperature: float = positive(1.0)
    """T: divides the logits of both; higher is softer."""
    t_squared: bool = True
    """Multiply by T^2, as the authors do; false keeps the size of the gradient whatever T is."""
    standardize: bool = False
    """Give the logits of each row mean 0 and deviation 1 before T divides them (Sun et al. 2024)."""
    beta: float = at_least(0.0, 1.0)
    """The weight of the correlation over the classes of a position."""
    gamma: float = at_least(0.0, 1.0)
    """The weight of the correlation over the positions of a class."""
    epsilon: float = positive(1e-8)
    """Probabilities that deviate less than this, in Euclidean length, have nothing to correlate."""

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        common = partial(dist, temperature=self.temperature, t_squared=self.t_squared, standardize=self.standardize)
        return partial(common, beta=self.beta, gamma=self.gamma, epsilon=self.epsilon)


def dist(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    t_squared: bool = True,
    standardize: bool = False,
    epsilon: float = 1e-8,
) -> Tensor:
    """T^2 (beta mean_n (1 - r(q_n., p_n.)) + gamma mean_c (1 - r(q_.c, p_.c))), a scalar.

    q, p: (N, C), the softmax at T of student and teacher at the N valid positions. r: Pearson's correlation.
    student, teacher: logits (B, C) or (B, L, C); the teacher receives no gradient. mask: bool (B,) or (B, L).
    standardize: see `standardized`.
    A class that is -inf on both sides of a position is no part of its row. Rows and columns that are constant on
    one side have r = 0 and no gradient; a row that is on both agrees; a column that is on both is not counted.
    Huang et al. 2022, Knowledge Distillation from A Stronger Teacher; the authors add 1e-8 to the product of
    the deviations, which makes classes of tiny probability unrelated even at agreement.

    Raises ObjectiveError when the shapes do not fit.
    """
    student, teacher = tempered(student, teacher, mask, temperature, standardize)
    known = ~(torch.isneginf(student) & torch.isneginf(teacher)).flatten(0, -2)
    q, p = (torch.softmax(logits, dim=-1).flatten(0, -2) for logits in (student, teacher))
    valid = torch.ones_like(known[:, 0]) if mask is None else mask.flatten()
    rows, _ = unrelated(q, p, known, epsilon, dim=1)
    columns, counted = unrelated(q, p, valid.unsqueeze(1).expand_as(q), epsilon, dim=0)
    loss = beta * valid_mean(rows, valid) + gamma * valid_mean(columns, counted)
    return loss * temperature**2 if t_squared else loss


def unrelated(q: Tensor, p: Tensor, known: Tensor, epsilon: float, dim: int) -> tuple[Tensor, Tensor]:
    """1 - r along one of two dimensions over the known entries, and where not both sides are constant.

    q, p: (N, C); known: bool, their shape. Constant on both sides is 0, on one is 1.
    """
    q, p = centred(q, known, dim), centred(p, known, dim)
    ours, theirs = torch.linalg.vector_norm(q, dim=dim), torch.linalg.vector_norm(p, dim=dim)
    flat = (ours < epsilon) | (theirs < epsilon)
    counted = (ours >= epsilon) | (theirs >= epsilon)
    dot = (q * p).sum(dim=dim).masked_fill(flat, 0.0)
    return (1.0 - dot / (ours * theirs).masked_fill(flat, 1.0)).masked_fill(~counted, 0.0), counted


def centred(values: Tensor, known: Tensor, dim: int) -> Tensor:
    """Values less their mean along a dimension, 0 where they are not known."""
    mean = values.masked_fill(~known, 0.0).sum(dim=dim, keepdim=True) / known.sum(dim=dim, keepdim=True).clamp(min=1)
    return (values - mean).masked_fill(~known, 0.0)
