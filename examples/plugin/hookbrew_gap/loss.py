"""A loss: a pure function on tensors, and its options beside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

from torch import Tensor

from hookbrew.objective import valid_mean
from hookbrew.plugin import options, positive


@options
class Gap:
    """Mean absolute difference of two hidden states."""

    takes: ClassVar[str] = "hidden"

    scale: float = positive(1.0)
    """Multiplies the difference."""

    def build(self) -> Callable[..., Tensor]:
        """The function, with its options filled in."""
        return partial(gap, scale=self.scale)


def gap(student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
    """scale * |student - teacher|, the mean over features D and valid positions.

    student, teacher: (B, L, D) or (B, D); mask: (B, L) or (B,), True where a position counts.
    """
    return scale * valid_mean((student - teacher.detach()).abs().mean(-1), mask)
