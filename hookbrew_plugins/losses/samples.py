"""Losses on how the samples of a batch lie to each other. B batch, F the features of a sample.

They need no equal widths: a sample is one vector, its tokens side by side and zeros where the mask is False.
Samples of different micro-batches are never compared, so that k micro-batches do not have the gradient of one batch
k times the size, as they do for other losses: give these the batch size that they need.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from hookbrew.errors import ObjectiveError
from hookbrew.plugin import at_least, options, positive
from hookbrew_plugins.losses.hidden import unit
from hookbrew_plugins.losses.shapes import blanked, require_mask, require_rows, widened

SMALL = 1e-8
"""A vector shorter than this has no direction, and samples that are nearer no distance."""
SHRINKING = "it divides by B^2 a sum that grows with B, as the authors do, whose weights are made for that"
TOGETHER = "it compares the samples of a batch with each other, and those of two parts never meet"


@options
class SP:
    """Squared difference of the similarities between samples, over B^2 (Tung and Mori 2019, eq. 4).

    Similarity-preserving distillation; the authors' weight is 3000. Widths may differ.
    """

    takes: ClassVar[str] = "features"
    counts: ClassVar[str] = "samples"
    exempt: ClassVar[dict[str, str]] = {"mean_over_batch": SHRINKING, "micro_batches": TOGETHER}

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return sp


@options
class RKD:
    """Huber losses of the distances between two samples and the angles between three (Park et al. 2019, section 3.2).

    Relational distillation. Widths may differ.
    """

    takes: ClassVar[str] = "features"
    counts: ClassVar[str] = "samples"
    exempt: ClassVar[dict[str, str]] = {"micro_batches": TOGETHER}

    distance: float = at_least(0.0, 25.0)
    """The weight of the distances."""
    angle: float = at_least(0.0, 50.0)
    """The weight of the angles."""

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return partial(rkd, distance=self.distance, angle=self.angle)


@options
class PKT:
    """KL divergence of how likely two samples are to be neighbours, over B^2 (Passalis and Tefas 2018, section 3).

    Probabilistic knowledge transfer with the cosine kernel; RepDistiller's weight is 30000. Widths may differ.
    """

    takes: ClassVar[str] = "features"
    counts: ClassVar[str] = "samples"
    exempt: ClassVar[dict[str, str]] = {"mean_over_batch": SHRINKING, "micro_batches": TOGETHER}

    epsilon: float = positive(1e-7)
    """A smaller probability counts as this before the log; the authors add it, which pulls at agreement too."""

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return partial(pkt, epsilon=self.epsilon)


def sp(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """|N(G_s) - N(G_t)|^2 / n^2, a scalar; G_ij = f_i f_j of valid samples, N makes rows of length 1.

    student, teacher: (B, F), or (B, ..., D) that is flattened; the teacher receives no gradient.
    mask: bool (B,), or (B, L) for (B, L, D); n samples have a valid position. Tung and Mori 2019, eq. 1-4.

    Raises ObjectiveError when the shapes do not fit.
    """
    ours, theirs, there = rows(student, teacher, mask)
    apart = unit(ours @ ours.mT, SMALL) - unit(theirs @ theirs.mT, SMALL)
    return among(apart.square(), there[:, None] & there)


def rkd(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, distance: float = 25.0, angle: float = 50.0
) -> Tensor:
    """distance * huber(d_s, d_t) + angle * huber(a_s, a_t), each a mean, a scalar.

    d_ij = |f_i - f_j| over its mean over pairs of different samples; a_ijk = cos of the angle at i between j and k.
    The means run over all n^2 pairs and n^3 triples of valid samples, those of equal ones included, as in the
    authors' code. student, teacher: (B, F), or (B, ..., D) that is flattened; the teacher receives no gradient.
    mask: bool (B,), or (B, L) for (B, L, D). Needs memory for B^2 F numbers. Park et al. 2019, section 3.2.

    Raises ObjectiveError when the shapes do not fit.
    """
    *sides, there = rows(student, teacher, mask)
    pairs = there[:, None] & there
    (far, corner), (far_, corner_) = (related(side, pairs) for side in sides)
    triples = pairs[:, :, None] & there
    return distance * among(huber(far, far_), pairs) + angle * among(huber(corner, corner_), triples)


def pkt(student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, epsilon: float = 1e-7) -> Tensor:
    """sum_ij p_ij log(max(p_ij, epsilon) / max(q_ij, epsilon)) / n^2, a scalar; p the teacher's, q the student's.

    p_ij = k_ij / sum_j k_ij and k_ij = (1 + cos(f_i, f_j)) / 2 over valid samples.
    student, teacher: (B, F), or (B, ..., D) that is flattened; the teacher receives no gradient.
    mask: bool (B,), or (B, L) for (B, L, D). Passalis and Tefas 2018, section 3; a mean over pairs as RepDistiller has.

    Raises ObjectiveError when the shapes do not fit.
    """
    ours, theirs, there = rows(student, teacher, mask)
    pairs = there[:, None] & there
    q, p = (near(side, pairs) for side in (ours, theirs))
    return among(p * (p.clamp(min=epsilon).log() - q.clamp(min=epsilon).log()), pairs)


def rows(student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Samples as vectors, (B, F) of each side in float32 or wider, and which of them are there, (B,).

    Raises ObjectiveError when the shapes do not fit.
    """
    require_rows(student, "features")
    if student.dim() != teacher.dim() or len(student) != len(teacher):
        raise ObjectiveError(f"samples differ: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}")
    require_mask(student, mask)
    if mask is not None and student.shape[:-1] != teacher.shape[:-1]:
        raise ObjectiveError(
            f"numbers of tokens differ, and one mask cannot be of both: student {tuple(student.shape)}, "
            f"teacher {tuple(teacher.shape)}; compare pooled tensors, one row for each sample"
        )
    ours, theirs = (blanked(widened(side), mask).flatten(1) for side in (student, teacher.detach()))
    if mask is None:
        return ours, theirs, torch.ones(len(student), dtype=torch.bool, device=student.device)
    return ours, theirs, mask.flatten(1).any(dim=1) if mask.dim() > 1 else mask


def among(values: Tensor, there: Tensor) -> Tensor:
    """The mean over what is there; 0 if there is nothing."""
    return values.masked_fill(~there, 0.0).sum() / there.sum().clamp(min=1)


def related(samples: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Distances by their mean, (B, B), and cosines of angles, (B, B, B), of samples, (B, F)."""
    apart = samples[:, None] - samples
    far: Tensor = torch.linalg.vector_norm(apart, dim=-1)
    some = pairs & (far > SMALL)
    mean = among(far, some)
    ways = unit(apart, SMALL)
    return far / torch.where(some.any(), mean, torch.ones_like(mean)), ways @ ways.mT


def near(samples: Tensor, pairs: Tensor) -> Tensor:
    """How likely each sample is a neighbour of each, (B, B): rows sum to 1 over the valid pairs."""
    ways = unit(samples, SMALL)
    kernel = ((1.0 + ways @ ways.mT) / 2.0).masked_fill(~pairs, 0.0)
    sums = kernel.sum(dim=1, keepdim=True)
    return kernel / sums.masked_fill(sums == 0, 1.0)


def huber(ours: Tensor, theirs: Tensor) -> Tensor:
    """x^2 / 2 up to |x| = 1, then |x| - 1/2, of the difference x."""
    return torch.nn.functional.smooth_l1_loss(ours, theirs, reduction="none")
