"""How alike two representations are as a whole. B batch, L tokens, D features."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from hookbrew.errors import ObjectiveError
from hookbrew.plugin import options, positive
from hookbrew_plugins.losses.shapes import blanked, require_mask, require_rows, widened


@options
class CKA:
    """1 - linear centred kernel alignment of valid positions (Kornblith et al. 2019, section 3). Widths may differ.

    It compares the positions of one batch with each other: k micro-batches do not have the gradient of one batch k
    times the size, and few positions look more alike than many.
    """

    takes: ClassVar[str] = "features"
    exempt: ClassVar[dict[str, str]] = {
        "micro_batches": "it compares the positions of a batch with each other, and those of two parts never meet"
    }

    epsilon: float = positive(1e-6)
    """A side that varies less than this share of its size does not vary: it is like nothing, and gives 1."""

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return partial(cka, epsilon=self.epsilon)


def cka(student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, epsilon: float = 1e-6) -> Tensor:
    """1 - |T' S|^2 / (|S' S| |T' T|) with Frobenius norms, a scalar from 0 to 1; nothing valid gives 0.

    S, T: the valid positions, one a row, less their mean. student, teacher: (B, L, D) or (B, D), each with its own D;
    the teacher receives no gradient. mask: bool (B, L) or (B,). Neither a rotation nor a scale of the features
    changes it. A side that does not vary gives 1 and no gradient.

    Raises ObjectiveError when the shapes do not fit.
    """
    require_rows(student, "features")
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ObjectiveError(f"positions differ: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}")
    require_mask(student, mask)
    ours, theirs = (centred(side, mask, epsilon) for side in (student, teacher.detach()))
    own, other = (torch.linalg.matrix_norm(side.mT @ side) for side in (ours, theirs))
    still = (own == 0) | (other == 0)
    alike: Tensor = (theirs.mT @ ours).square().sum() / (own * other).masked_fill(still, 1.0)
    there = torch.ones_like(alike) if mask is None else mask.any().to(alike.dtype)
    return there - alike.masked_fill(still, 0.0)


def centred(tensor: Tensor, mask: Tensor | None, epsilon: float) -> Tensor:
    """Positions as rows, (..., D) to (N, D), less their mean and of length 1 together; zeros where mask is False."""
    rows = blanked(widened(tensor), mask).flatten(0, -2)
    there = torch.ones_like(rows[:, 0], dtype=torch.bool) if mask is None else mask.flatten()
    mean = rows.sum(dim=0) / there.sum().clamp(min=1)
    varying = blanked(rows - mean, there)
    size: Tensor = torch.linalg.matrix_norm(varying)
    still = size <= epsilon * torch.linalg.matrix_norm(rows.detach())
    return varying.masked_fill(still, 0.0) / size.masked_fill(still, 1.0)
