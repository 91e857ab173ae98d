"""Losses on relations between the tokens of a sample, as their queries, keys or values give them.

B batch, H heads, L tokens, D features of a head, R relation heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from hookbrew.errors import ObjectiveError
from hookbrew.objective import valid_mean
from hookbrew.plugin import at_least, options
from hookbrew_plugins.losses.heads import headed, softened


@options
class Relation:
    """KL divergence of the relations between queries, keys or values, mean over relation heads and valid tokens.

    MiniLMv2 (Wang et al. 2021, section 3.1): one loss for each of `:q`, `:k` and `:v`, the teacher's at its last layer
    (an upper middle one of a large teacher). Numbers of heads and widths of the two models may differ.
    """

    takes: ClassVar[str] = "relation"
    counts: ClassVar[str] = "positions"

    heads: int = at_least(1, 48)
    """R: into how many the features of all heads are cut anew; it divides the widths of both models."""

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return partial(relation, heads=self.heads)


@options
class ValueRelation:
    """KL divergence of the relations between values, head by head, mean over heads and valid tokens.

    MiniLM (Wang et al. 2020, section 3.2), on `:v`. Heads may be narrower than the teacher's; there are as many.
    """

    takes: ClassVar[str] = "relation"
    counts: ClassVar[str] = "positions"

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return value_relation


def relation(student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, heads: int = 48) -> Tensor:
    """sum_bri m_bi KL(softmax_j(t_bri t_brj / sqrt(d_t)) | softmax_j(s_bri s_brj / sqrt(d_s))) / (R sum_b n_b).

    student, teacher: queries, keys or values (B, H, L, D), each with its own H and D, whose H D features are cut
    into R = heads of d; the teacher receives no gradient. mask: bool (B, L); the softmax runs over valid tokens.
    A scalar, 0 or more. MiniLMv2, section 3.1.

    Raises ObjectiveError when the shapes do not fit, or heads does not divide H D.
    """
    student, teacher = headed(student, teacher, mask, merged=True)
    require_divisor(student, teacher, heads)
    return divergence(recut(student, heads), recut(teacher, heads), mask)


def value_relation(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """sum_bhi m_bi KL(softmax_j(t_bhi t_bhj / sqrt(D_t)) | softmax_j(s_bhi s_bhj / sqrt(D_s))) / (H sum_b n_b).

    student, teacher: values (B, H, L, D), each with its own D; the teacher receives no gradient.
    mask: bool (B, L); the softmax runs over valid tokens. A scalar, 0 or more. MiniLM, section 3.2.

    Raises ObjectiveError when the shapes do not fit.
    """
    student, teacher = headed(student, teacher, mask, merged=False)
    return divergence(student, teacher, mask)


def divergence(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """The mean KL divergence of the relations, over heads and valid tokens."""
    seen = torch.ones((), dtype=torch.bool, device=student.device) if mask is None else mask[:, None, None, :]
    theirs, ours = related(teacher, seen), related(student, seen)
    apart = theirs.exp() * (theirs - ours)
    return valid_mean(apart.sum(dim=-1).mean(dim=1), mask)


def related(vectors: Tensor, seen: Tensor) -> Tensor:
    """log softmax_j(a_i a_j / sqrt(d)): (B, R, L, d) to (B, R, L, L)."""
    scaled = vectors / math.sqrt(vectors.shape[-1])
    return softened(scaled @ vectors.mT, seen)


def recut(vectors: Tensor, heads: int) -> Tensor:
    """The features of all heads side by side, cut anew: (B, H, L, D) to (B, R, L, H D / R)."""
    beside = vectors.transpose(1, 2).flatten(2)
    return beside.reshape(*beside.shape[:2], heads, -1).transpose(1, 2)


def require_divisor(student: Tensor, teacher: Tensor, heads: int) -> None:
    """Raise ObjectiveError unless the number of relation heads divides the features of both."""
    ours, theirs = (side.shape[1] * side.shape[3] for side in (student, teacher))
    if ours % heads or theirs % heads:
        shared = math.gcd(ours, theirs)
        fits = ", ".join(str(number) for number in range(1, shared + 1) if shared % number == 0)
        raise ObjectiveError(
            f"heads = {heads} does not divide the {ours} features of the student's tokens and the {theirs} of the "
            f"teacher's; what divides both: {fits}"
        )
