"""What can be done to the teacher's word before it is compared: correct it by the labels, and soften it row by row.

B batch, L tokens, C classes. Both wrap a loss, and come from Wen, Lai and Qian 2019, arXiv 1911.07471, by way of
TextBrewer (Yang et al. 2020), which has them as `probability_shift` and as temperature schedulers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from hookbrew.objective import Chunked, valid_mean
from hookbrew.plugin import at_least, choice, options, positive
from hookbrew_plugins.losses.chunked import told
from hookbrew_plugins.losses.labels import require_labels
from hookbrew_plugins.losses.shapes import paired, require_mask

Rows = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Student, teacher and mask to a temperature for each row."""


@options
class Taught:
    """Options of a loss between two rows of logits."""

    marks: ClassVar[bool] = False
    """Labels correct the teacher; a row without one is compared as it is."""

    temperature: float = positive(4.0)
    """T: divides the logits of both; higher is softer."""
    t_squared: bool = True
    """Multiply by T^2, so that the gradient keeps its size whatever T is; false is what TextBrewer does."""
    standardize: bool = False
    """Give the logits of each row mean 0 and deviation 1 before T divides them (Sun et al. 2024)."""
    probability_shift: bool = False
    """Where the teacher's first class is not the label, let the two change places; needs labels, negative is none."""
    dynamic: str | None = choice("flsw", "cwsm", default=None)
    """A temperature for each row, around T: by how far the two disagree, or by how unsure the student is."""
    beta: float = at_least(0.0, 1.0)
    """How far `dynamic` moves a temperature."""
    gamma: float = at_least(0.0, 2.0)
    """The power of the disagreement in `flsw`."""
    coldest: float = positive(0.1)
    """The lowest temperature that `dynamic` may give."""

    def around(self, loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The loss with these options, as a function of student, teacher and mask, and labels if they shift."""
        made = partial(loss, temperature=self.temperature, t_squared=self.t_squared, standardize=self.standardize)
        if self.dynamic is not None:
            made = partial(warmed, loss=made, rows=self.rows())
        return partial(corrected, loss=made) if self.probability_shift else made

    def walked(self, loss: str) -> Chunked | None:
        """What a loss with these options tells of its chunked form; those that look at whole rows have none."""
        if self.standardize or self.probability_shift or self.dynamic is not None:
            return None
        return told(loss, temperature=self.temperature, t_squared=self.t_squared)

    def rows(self) -> Rows:
        """The rule for the temperature of each row."""
        common: dict[str, Any] = {"temperature": self.temperature, "beta": self.beta, "coldest": self.coldest}
        return partial(flsw, **common, gamma=self.gamma) if self.dynamic == "flsw" else partial(cwsm, **common)


def warmed(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, loss: Callable[..., Tensor], rows: Rows
) -> Tensor:
    """A loss with a temperature for each row, which is measured on the logits as they are given."""
    return loss(student, teacher, mask, temperature=rows(student, teacher, mask))


def corrected(
    student: Tensor, teacher: Tensor, labels: Tensor, mask: Tensor | None = None, *, loss: Callable[..., Tensor]
) -> Tensor:
    """A loss with a teacher that puts the label first."""
    return loss(student, shifted(teacher, labels, mask), mask)


def shifted(teacher: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """The teacher's logits with the value of its first class and that of the label exchanged, (..., C).

    teacher: (B, C) or (B, L, C), not changed itself. labels: integers (B,) or (B, L); one below 0, as -100, leaves
    its row as it is, and so does a mask, bool as labels, where it is False. TextBrewer, `probability_shift`.

    Raises ObjectiveError when the shapes do not fit or the labels are no integers.
    """
    require_labels(teacher, labels)
    require_mask(teacher, mask)
    first = teacher.argmax(dim=-1)
    known = labels >= 0 if mask is None else mask & (labels >= 0)
    gold = torch.where(known, labels.long(), first).unsqueeze(-1)
    first = first.unsqueeze(-1)
    highest, wanted = teacher.gather(-1, first), teacher.gather(-1, gold)
    return teacher.scatter(-1, first, wanted).scatter(-1, gold, highest)


def flsw(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 4.0,
    beta: float = 1.0,
    gamma: float = 2.0,
    coldest: float = 0.1,
) -> Tensor:
    """T + beta (mean w - w), w = (1 - cos(student, teacher))^gamma: focal loss style weights, (...).

    Rows that disagree more than others get a lower temperature. student, teacher: logits (B, C) or (B, L, C);
    no gradient passes. mask: bool (B,) or (B, L); the mean is over valid rows. A class that is -inf counts as 0.
    Wen, Lai and Qian 2019, Preparing Lessons, as adapted by TextBrewer, which adds 1e-4 to each norm, as this
    does, and has no lowest temperature: its own can be negative.

    Raises ObjectiveError when the shapes do not fit.
    """
    student, teacher = paired(student.detach(), teacher, mask, "classes")
    ours, theirs = directed(student), directed(teacher)
    weights = (1.0 - (ours * theirs).sum(dim=-1)).clamp(min=0.0) ** gamma  # rounding can bring the cosine above 1
    return (temperature + beta * (valid_mean(weights, mask) - weights)).clamp(min=coldest)


def cwsm(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 4.0,
    beta: float = 1.0,
    coldest: float = 0.1,
) -> Tensor:
    """T + beta (mean w - w), w = 1 / (max_c softmax(student)_c + 1e-3): confidence weights, (...).

    Rows where the student is less sure than in others get a lower temperature. Shapes, mask, source and lowest
    temperature as in `flsw`; the softmax is at temperature 1. With many classes w is large: choose a small beta.

    Raises ObjectiveError when the shapes do not fit.
    """
    student, _ = paired(student.detach(), teacher, mask, "classes")
    weights = 1.0 / (torch.softmax(student, dim=-1).amax(dim=-1) + 1e-3)
    return (temperature + beta * (valid_mean(weights, mask) - weights)).clamp(min=coldest)


def directed(vectors: Tensor) -> Tensor:
    """Each row divided by its length, plus an epsilon, (..., C); -inf counts as 0."""
    known = vectors.masked_fill(torch.isneginf(vectors), 0.0)
    found: Tensor = known / (torch.linalg.vector_norm(known, dim=-1, keepdim=True) + 1e-4)
    return found
