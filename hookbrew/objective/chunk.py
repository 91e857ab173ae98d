"""What a loss on logits tells of itself where it can be computed from hidden states and heads, in chunks of rows.

D features, V classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import attrs
from torch import Tensor


class Side(NamedTuple):
    """The last hidden states of one model and its output head."""

    hidden: Tensor
    """(..., D), what goes into the head."""
    weight: Tensor
    """(V, D)."""
    bias: Tensor | None = None
    """(V,)."""


@attrs.frozen
class Chunked:
    """What the options of a loss give from a method `chunked()`, or None where these options need the whole logits."""

    function: Callable[..., tuple[Tensor, Tensor]]
    """Several losses in one pass: (student, teacher, parts, weights, mask=, labels=) -> their weighted sum, a scalar,
    and each without its weight, (parts,), which needs no gradient. student and teacher are a `Side`, the teacher None
    where no part reads one; mask and labels have the shape of hidden states without D, or are None; a weight is a
    number or a scalar. Each part is a mean over the positions of the mask, of labels over those that are not -100."""
    part: Any
    """What tells the function which loss it is; losses with one function, heads and mask are computed together."""
