"""Numbers of the terms as one tensor on their device: most are the same in the next step, and are not made again."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor


@attrs.define
class Vector:
    """The last one that was made."""

    _values: Sequence[float | Tensor] | None = None
    _made: Tensor = attrs.field(factory=lambda: torch.zeros(0))

    def of(self, values: Sequence[float | Tensor], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
        """(terms,), of numbers, or of scalars on that device; nobody may write into it. No host sync."""
        known = True
        for value in values:
            known = known and not isinstance(value, Tensor)
        if known and values == self._values and self._made.device == device and self._made.dtype == dtype:
            return self._made
        # filled number by number: a tensor made of a list would be copied to the device, and wait for it
        made = torch.stack(
            [v if isinstance(v, Tensor) else torch.full((), v, dtype=dtype, device=device) for v in values]
        )
        if known:
            self._values, self._made = values, made
        return made


def weighted(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The sum of some scalars, each times its weight."""
    whole: Tensor | None = None
    for value, weight in zip(values, weights, strict=True):
        part = value if weight == 1 else value * weight
        whole = part if whole is None else whole + part
    assert whole is not None
    return whole
