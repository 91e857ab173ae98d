"""The torch functions that attention is made of, as a function mode meets them."""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

SDPA: Final = F.scaled_dot_product_attention
MULTIHEAD: Final = F.multi_head_attention_forward
SOFTMAX: Final = (F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax)
PRODUCT: Final = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm)


def weighed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """The dimensions of what a softmax runs over, if that may be keys: the last of three or more; else 0."""
    value = args[0] if args else kwargs.get("input")
    axis = args[1] if args[1:] else kwargs.get("dim")
    if not isinstance(value, Tensor) or value.dim() < 3 or axis not in (-1, value.dim() - 1):
        return 0
    return value.dim()
