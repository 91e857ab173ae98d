"""Losses from hidden states and output heads, in chunks of rows: the logits of all positions are never there at once.

B batch, L tokens, D features (student and teacher may differ), V classes. Values and gradients are those of the dense
losses in `logits`, `divergences` and `labels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor

from hookbrew.errors import ObjectiveError
from hookbrew.objective import Chunked, Side
from hookbrew_plugins.losses.shapes import IGNORED, REDUCED, require_mask
from hookbrew_plugins.losses.walk import Plan, Term, Walk

BUFFER = 32 * 2**20
"""Bytes of one buffer, at most: glibc gives a bigger block back to the system each time, and pages fault in again."""


class Walked(NamedTuple):
    """What a walk over the chunks gives."""

    total: Tensor
    """The weighted sum, a scalar, with a gradient for the student's hidden states, weight and bias."""
    values: Tensor
    """Each term without its weight, (terms,), without a gradient."""


def chunked(
    student: Side,
    teacher: Side | None,
    terms: Sequence[Term],
    *,
    mask: Tensor | None = None,
    labels: Tensor | None = None,
    rows: int | None = None,
) -> Walked:
    """The weighted sum of losses on the logits of two heads, each a mean over its valid positions, in one walk.

    student, teacher: hidden states (B, L, D) or (B, D); the teacher receives no gradient, and is None if no term
    needs it. mask: bool, (B, L) or (B,). labels: long, as mask, -100 where there is none. rows: of one chunk, by
    default as many as `BUFFER` holds. What is masked is left out before the product; a device is asked once how much.

    The gradients are made in the forward, and only scaled in the backward: they have no derivatives of their own.

    Raises ObjectiveError when shapes, types or terms do not fit.
    """
    soft = any(not term.hard for term in terms)
    other = teacher if soft else None
    require_terms(terms, student, other, labels)
    require_mask(student.hidden, mask)
    if rows is not None and rows < 1:
        raise ObjectiveError(f"a chunk has {rows} rows; expected 1 or more")
    picked = valid(mask, None if soft else labels)
    number = student.hidden.shape[:-1].numel() if picked is None else picked.numel()
    wide = widest(student, other)
    plan = Plan(
        teacher=other,
        terms=tuple(terms),
        picked=picked,
        labels=None if labels is None else labels.flatten().long(),
        number=number,
        size=evened(number, rows or max(1, BUFFER // (student.weight.shape[0] * wide.itemsize))),
        wide=wide,
        low=lower(student.hidden),
        learning=torch.is_grad_enabled(),
    )
    return Walked(*Walk.apply(*student, plan))  # type: ignore[no-untyped-call]


def together(
    student: Side,
    teacher: Side | None,
    terms: Sequence[Term],
    weights: Sequence[float | Tensor],
    *,
    mask: Tensor | None = None,
    labels: Tensor | None = None,
) -> Walked:
    """`chunked` with the weights of this step."""
    weighed = [attrs.evolve(term, weight=weight) for term, weight in zip(terms, weights, strict=True)]
    return chunked(student, teacher, weighed, mask=mask, labels=labels)


def told(loss: str, **options: Any) -> Chunked:
    """What a loss tells of its chunked form; options: those of its `Term`."""
    return Chunked(together, Term(loss, **options))


def valid(mask: Tensor | None, labels: Tensor | None) -> Tensor | None:
    """The numbers of the rows that count, (n,); None for all. labels: only where a row counts no more without one."""
    if labels is not None:
        labelled = labels != IGNORED
        mask = labelled if mask is None else mask & labelled
    if mask is None:
        return None
    picked = mask.flatten().nonzero().squeeze(-1)
    return None if picked.numel() == mask.numel() else picked


def evened(number: int, most: int) -> int:
    """Rows of a chunk, at most `most`, so that all chunks of `number` rows are of one size, or nearly."""
    return max(1, -(-number // max(1, -(-number // most))))


def widest(student: Side, teacher: Side | None) -> torch.dtype:
    """What the dense losses compute in: float32, or what is wider on either side."""
    kinds = [side.hidden.dtype for side in (student, teacher) if side is not None]
    kinds = [torch.float32 if kind in REDUCED else kind for kind in kinds]
    return torch.promote_types(kinds[0], kinds[-1])


def lower(hidden: Tensor) -> torch.dtype | None:
    """What autocast computes products in, where it is on."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def require_terms(terms: Sequence[Term], student: Side, teacher: Side | None, labels: Tensor | None) -> None:
    """Raise ObjectiveError unless each term has what it needs, of fitting shapes."""
    if not terms:
        raise ObjectiveError("a chunked loss has no terms; expected one or more")
    require_side(student, "student")
    rows = student.hidden.shape[:-1]
    for term in terms:
        if not term.hard and teacher is None:
            raise ObjectiveError(f"chunked loss {term.loss!r} needs a teacher; there is none")
        if term.hard and labels is None:
            raise ObjectiveError("chunked loss 'ce' needs labels; there are none")
        if isinstance(term.temperature, Tensor) and term.temperature.shape != rows:
            raise ObjectiveError(
                f"temperature is {tuple(term.temperature.shape)}; expected {tuple(rows)}, one for each position"
            )
    if labels is not None and (labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != rows):
        raise ObjectiveError(
            f"labels are {labels.dtype}, {tuple(labels.shape)}; expected torch.long, {tuple(rows)}, the student's "
            f"hidden states {tuple(student.hidden.shape)} without their features"
        )
    if teacher is not None:
        require_side(teacher, "teacher")
        require_pair(student, teacher)


def require_side(side: Side, name: str) -> None:
    """Raise ObjectiveError unless the head takes these hidden states."""
    hidden, weight, bias = side
    if hidden.dim() < 2:
        raise ObjectiveError(f"{name}'s hidden states are {tuple(hidden.shape)}; expected (batch, ..., features)")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ObjectiveError(
            f"{name}'s head is {tuple(weight.shape)}; expected (classes, {hidden.shape[-1]}), as its hidden states "
            f"have {hidden.shape[-1]} features"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ObjectiveError(f"{name}'s bias is {tuple(bias.shape)}; expected {tuple(weight.shape[:1])}")
    if hidden.dtype != weight.dtype and lower(hidden) is None:
        raise ObjectiveError(
            f"{name}'s hidden states are {hidden.dtype}, its head is {weight.dtype}; expected one type without autocast"
        )


def require_pair(student: Side, teacher: Side) -> None:
    """Raise ObjectiveError unless both sides have the same positions and classes."""
    ours, theirs = student.hidden.shape[:-1], teacher.hidden.shape[:-1]
    if ours != theirs:
        raise ObjectiveError(f"positions differ: student {tuple(ours)}, teacher {tuple(theirs)}")
    if student.weight.shape[0] != teacher.weight.shape[0]:
        raise ObjectiveError(
            f"numbers of classes differ: student {student.weight.shape[0]}, teacher {teacher.weight.shape[0]}"
        )
