"""Tensors of an attention: which losses take them, what fits them, and how probabilities are told from scores.

B batch, H heads, L queries, S keys, D features of a head. A mask of the batch, (B, L), is for queries and keys alike.
"""

from __future__ import annotations

from typing import Final

import attrs
import torch
from torch import Tensor

from hookbrew.errors import ObjectiveError

MAP: Final = "(batch, heads, queries, keys)"
PLACES: Final = {0: "batch sizes", 2: "numbers of tokens"}
CLOSE: Final = 0.01
"""How far a row of probabilities may be from a sum of 1: that of a long row in bfloat16 is."""


@attrs.frozen
class Kind:
    """A kind of tensor that losses ask for by the word in `takes`."""

    what: str
    """In a sentence."""
    selector: str
    """One that gives it on any model with a stack of blocks."""
    axes: str = MAP
    """What its dimensions are."""

    @property
    def square(self) -> bool:
        """Whether it relates tokens to tokens: its last dimension are keys, no features."""
        return self.axes == MAP


ATTENDED: Final = {
    "attention": Kind("attention", "attention[-1]"),
    "probabilities": Kind("attention probabilities", "attention[-1]"),
    "scores": Kind("attention scores", "attention[-1]:scores"),
    "relation": Kind("queries, keys or values", "attention[-1]:v", "(batch, heads, tokens, features)"),
}
"""The kinds that come from an attention. `attention` are probabilities or scores, the same on both sides."""


def places(takes: str, shape: torch.Size) -> torch.Size:
    """The shape of a mask or of labels for a tensor of this shape: (B, L) for one of an attention, else all but D.

    Empty where no mask can fit: keys that are not the queries have a mask of their own.
    """
    kind = ATTENDED.get(takes)
    if kind is None:
        return shape[:-1]
    if kind.square and shape[-1] != shape[-2]:
        return torch.Size()
    return torch.Size((shape[0], shape[-2]))


def require_attended(loss: str, takes: str, student: Tensor, teacher: Tensor | None) -> None:
    """Raise ObjectiveError unless the tensors are what the loss takes, and of the same tokens.

    Numbers of heads are the loss's own affair: some average over them.
    """
    kind = ATTENDED[takes]
    sides = {"student": student} | ({} if teacher is None else {"teacher": teacher})
    for side, tensor in sides.items():
        if tensor.dim() != 4:
            raise ObjectiveError(
                f"loss {loss!r} compares {kind.what}, {kind.axes}, and the {side}'s tensor is {tuple(tensor.shape)}; "
                f'name one, as in {side} = "{kind.selector}"'
            )
    if teacher is not None:
        same = PLACES | ({3: "numbers of keys"} if kind.square else {})
        for place, what in same.items():
            if student.shape[place] != teacher.shape[place]:
                raise ObjectiveError(
                    f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in their {what}; "
                    f"loss {loss!r} compares token by token"
                )
    if kind.square:
        require_port(loss, takes, sides)


def require_port(loss: str, takes: str, sides: dict[str, Tensor]) -> None:
    """Raise ObjectiveError where values show that probabilities were given for scores, or scores for probabilities."""
    kinds = {side: shown(tensor) for side, tensor in sides.items()}
    if takes == "attention":
        if set(kinds.values()) == {"probabilities", "scores"}:
            told = " and ".join(f"the {side}'s are {kind}" for side, kind in kinds.items())
            raise ObjectiveError(f"{told}; give loss {loss!r} the same port on both sides, :attn or :scores")
        return
    port = "attn" if takes == "probabilities" else takes
    for side, found in kinds.items():
        if found not in (None, takes):
            raise ObjectiveError(
                f"loss {loss!r} takes {takes}, and the {side}'s values are {found}; name the port :{port}, "
                f'as in {side} = "{ATTENDED[takes].selector}"'
            )


def shown(attention: Tensor) -> str | None:
    """What values of (B, H, L, S) can only be: `probabilities`, `scores`; None where they leave it open.

    Rows that sum to 1 are a softmax's. A negative value, or a row with a larger sum, comes from none; rows with
    a smaller one may be of an attention that has sinks besides its keys.
    """
    attention = attention.detach()
    if attention.dim() and not attention.stride(0):
        attention = attention[:1]  # one sample that stands for all
    sums = attention.sum(dim=-1, dtype=torch.float32)
    if bool((attention < 0).any() | (sums > 1 + CLOSE).any()):
        return "scores"
    unseeing = sums == 0
    whole = unseeing | ((sums - 1).abs() <= CLOSE)
    return "probabilities" if bool(whole.all() & ~unseeing.all()) else None
