"""Numbers of the terms as one tensor on their device: most are the same in the next step, and are not made again."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor


@attrs.define
class Vector:
    """The last one that was made."""

    _values: list[float] | None = None
    _made: Tensor = attrs.field(factory=lambda: torch.zeros(0))

    def of(self, values: Sequence[float | Tensor], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
        """(terms,), of numbers, or of scalars on that device; nobody may write into it. No host sync."""
        numbers = [value for value in values if not isinstance(value, Tensor)]
        known = len(numbers) == len(values)
        if known and numbers == self._values and self._made.device == device and self._made.dtype == dtype:
            return self._made
        # filled number by number: a tensor made of a list would be copied to the device, and wait for it
        made = torch.stack(
            [v if isinstance(v, Tensor) else torch.full((), v, dtype=dtype, device=device) for v in values]
        )
        if known:
            self._values, self._made = numbers, made
        return made


def weighted(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The sum of some scalars, each times its weight."""
    first, *rest = [value if weight == 1 else value * weight for value, weight in zip(values, weights, strict=True)]
    for value in rest:
        first = first + value
    return first
