"""One label for each row of logits, whatever form the data have it in. C classes."""

from __future__ import annotations

from torch import Tensor

from hookbrew.errors import DataError
from hookbrew.objective.align import IGNORED

ROUNDED = 0.02
"""How far soft labels in bfloat16 may be from a sum of 1."""


def hard(logits: Tensor, labels: Tensor, who: str) -> Tensor:
    """One label for each row of logits (..., C), (...); of a soft one, its likeliest class.

    who: what asks for it, in a message. Raises DataError when there is not one label for each row.
    """
    if labels.is_floating_point() and labels.shape == logits.shape:
        labels = hardened(labels, who)
    if logits.shape[:-1] != labels.shape:
        raise DataError(
            f"{who}: labels {tuple(labels.shape)} do not fit logits {tuple(logits.shape)}; "
            "expected one label for each row"
        )
    return labels


def hardened(labels: Tensor, who: str) -> Tensor:
    """The likeliest class of each soft label, (..., C) to (...); -100 for a row of zeros.

    Raises DataError when a row sums to neither 1 nor 0: classes that do not exclude each other have no likeliest one.
    """
    sums = labels.float().sum(dim=-1)
    wrong = ((sums - 1.0).abs() > ROUNDED) & (sums != 0)
    if wrong.any():
        raise DataError(f"{who}: a soft label sums to {sums[wrong][0].item():g}; expected 1, or 0 where there is none")
    return labels.argmax(dim=-1).masked_fill(sums == 0, IGNORED)
