"""The one reduction of losses: the mean over what is valid."""

from __future__ import annotations

import torch
from torch import Tensor

from hookbrew.errors import ObjectiveError


def valid_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """sum(values * mask) / max(1, sum(mask)), a scalar; without a mask the mean of all values.

    values: one number for each sample, (B,), or position, (B, L). mask: bool, of the same shape.
    What stands at an invalid place never counts, not even nan or inf; nothing valid gives 0 with a zero gradient.

    Raises ObjectiveError when mask is not bool or has another shape.
    """
    if mask is None:
        return values.sum() / max(1, values.numel())
    require_mask(mask, values.shape)
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def require_mask(mask: Tensor, shape: torch.Size) -> None:
    """Raise ObjectiveError unless mask is bool and of this shape."""
    if mask.dtype != torch.bool:
        raise ObjectiveError(f"mask is {mask.dtype}; expected torch.bool, as mask.bool() gives")
    if mask.shape != shape:
        raise ObjectiveError(f"mask is {tuple(mask.shape)}; expected {tuple(shape)}, one entry for each position")
