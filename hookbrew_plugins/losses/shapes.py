"""What every loss does first: compare shapes, choose a precision, and blank what is masked.

B batch, L tokens, D the last dimension: features, or classes C.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hookbrew.errors import ObjectiveError

IGNORED = -100
"""The label that marks a position or a sample without one, as in torch."""
PLACES = ("batch sizes", "numbers of tokens")
REDUCED = (torch.bfloat16, torch.float16)


def paired(student: Tensor, teacher: Tensor, mask: Tensor | None, last: str) -> tuple[Tensor, Tensor]:
    """Student and teacher, (..., D), in float32 or wider; the teacher detached, zeros where the mask is False.

    Blanking comes before any arithmetic: 0 * inf is nan, in the gradient too.
    last: what the last dimension counts, for the message: `classes` or `features`.

    Raises ObjectiveError when the shapes differ, or the mask is not bool of the shape without D.
    """
    if student.dim() < 2 or student.shape != teacher.shape:
        require_same(student, teacher, last)
    student, teacher = widened(student), widened(teacher.detach() if teacher.requires_grad else teacher)
    if mask is None:
        return student, teacher
    require_mask(student, mask)
    return blanked(student, mask), blanked(teacher, mask)


def widened(tensor: Tensor) -> Tensor:
    """float32 instead of a 16-bit float; wider ones stay as they are."""
    return tensor.float() if tensor.dtype in REDUCED else tensor


def blanked(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """(..., D) with zeros at the positions where the mask, (...), is False."""
    return tensor if mask is None else tensor.masked_fill(~mask.unsqueeze(-1), 0.0)


def require_same(student: Tensor, teacher: Tensor, last: str) -> None:
    """Raise ObjectiveError unless both have one shape, of two dimensions or more."""
    require_rows(student, last)
    if student.shape == teacher.shape:
        return
    shapes = f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
    if student.dim() != teacher.dim():
        raise ObjectiveError(f"number of dimensions differs: {shapes}")
    for place, (ours, theirs) in enumerate(zip(student.shape, teacher.shape, strict=True)):
        if ours != theirs:
            raise ObjectiveError(f"{named(place, student.dim(), last)} differ: {ours} and {theirs}; {shapes}")


def require_rows(student: Tensor, last: str) -> None:
    """Raise ObjectiveError unless there is a batch before the last dimension."""
    if student.dim() < 2:
        raise ObjectiveError(f"student is {tuple(student.shape)}; expected (batch, ..., {last})")


def require_mask(student: Tensor, mask: Tensor | None) -> None:
    """Raise ObjectiveError unless the mask is bool and has one entry for each position of the student."""
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise ObjectiveError(f"mask is {mask.dtype}; expected torch.bool, as mask.bool() gives")
    if mask.shape != student.shape[:-1]:
        raise ObjectiveError(
            f"mask is {tuple(mask.shape)}; expected {tuple(student.shape[:-1])}, the student's shape "
            f"{tuple(student.shape)} without its last dimension"
        )


def named(place: int, dimensions: int, last: str) -> str:
    """What a dimension counts, in a word."""
    if place == dimensions - 1:
        return last
    return PLACES[place] if place < len(PLACES) else f"sizes of dimension {place}"
