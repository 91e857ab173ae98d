"""What every loss on an attention does first: compare shapes, choose a precision, and blank padding.

B batch, H heads, L queries, S keys, D features of a head. A mask (B, L) holds for queries and for keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hookbrew.errors import ObjectiveError
from hookbrew_plugins.losses.shapes import widened

HEADS = "numbers of heads"
MAP = ("batch sizes", HEADS, "numbers of queries", "numbers of keys")
TOKENS = ("batch sizes", HEADS, "numbers of tokens")


def mapped(student: Tensor, teacher: Tensor, mask: Tensor | None, *, merged: bool = False) -> tuple[Tensor, Tensor]:
    """Two attentions, (B, H, L, S), in float32 or wider; the teacher detached, 0 in the cells that the mask takes out.

    Blanking comes before any arithmetic: 0 * inf is nan, in the gradient too.
    merged: whether the loss merges the heads, so that their numbers may differ.

    Raises ObjectiveError when the shapes differ, or the mask is not bool (B, L).
    """
    require_agreement(student, teacher, MAP, merged=merged)
    require_tokens(student, mask, square=True)
    student, teacher = widened(student), widened(teacher.detach())
    if mask is None:
        return student, teacher
    outside = ~crossed(mask).unsqueeze(1)
    return student.masked_fill(outside, 0.0), teacher.masked_fill(outside, 0.0)


def headed(student: Tensor, teacher: Tensor, mask: Tensor | None, *, merged: bool) -> tuple[Tensor, Tensor]:
    """Queries, keys or values of two attentions, (B, H, L, D), prepared in the same way; each has its own D.

    Raises ObjectiveError when the shapes do not fit, or the mask is not bool (B, L).
    """
    require_agreement(student, teacher, TOKENS, merged=merged)
    require_tokens(student, mask, square=False)
    student, teacher = widened(student), widened(teacher.detach())
    if mask is None:
        return student, teacher
    outside = ~mask[:, None, :, None]
    return student.masked_fill(outside, 0.0), teacher.masked_fill(outside, 0.0)


def crossed(mask: Tensor) -> Tensor:
    """The pairs of valid positions of each sample: (B, L) to (B, L, L)."""
    return mask.unsqueeze(-1) & mask.unsqueeze(-2)


def softened(scores: Tensor, seen: Tensor) -> Tensor:
    """The log of the softmax over the keys that are seen; what it gives for others is finite and says nothing.

    scores: (..., L, S). seen: bool, broadcast to it. Filled with the smallest number and not with -inf, a row that
    sees no key has neither a value nor a gradient of nan.
    """
    return torch.log_softmax(scores.masked_fill(~seen, torch.finfo(scores.dtype).min), dim=-1)


def require_agreement(student: Tensor, teacher: Tensor, names: tuple[str, ...], *, merged: bool) -> None:
    """Raise ObjectiveError unless both have four dimensions, and equal ones as far as there are names for them."""
    shapes = f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
    if student.dim() != 4 or teacher.dim() != 4:
        last = "keys" if names == MAP else "features"
        raise ObjectiveError(f"expected (batch, heads, tokens, {last}); {shapes}")
    for name, ours, theirs in zip(names, student.shape, teacher.shape, strict=False):
        if ours != theirs and not (merged and name == HEADS):
            said = f"{name} differ: {ours} and {theirs}; {shapes}"
            if name == HEADS:
                said += "; attention_mse_sum and attention_ce_mean merge the heads, relation cuts them anew"
            raise ObjectiveError(said)


def require_tokens(student: Tensor, mask: Tensor | None, *, square: bool) -> None:
    """Raise ObjectiveError unless the mask is bool (B, L), and L the number of keys too if there are any."""
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise ObjectiveError(f"mask is {mask.dtype}; expected torch.bool, as mask.bool() gives")
    batch, _, length, last = student.shape
    if mask.shape != (batch, length):
        raise ObjectiveError(f"mask is {tuple(mask.shape)}; expected {(batch, length)}, one entry for each token")
    if square and last != length:
        raise ObjectiveError(
            f"student is {tuple(student.shape)}: its {last} keys are not its {length} queries, and one mask cannot "
            "be for both"
        )
