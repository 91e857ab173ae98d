"""A look at small tensors that lie in the host's memory already: what a whole mask says, for next to nothing."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

FEW: Final = 64
"""Up to so many numbers are read faster as Python's own."""
MOST: Final = 2**16
"""More are not looked at: reading them would cost more than the arithmetic that the look may save."""


def glance(tensor: Tensor) -> Any:
    """The numbers of a tensor, to be asked with `in`; of a scalar the number. None where a look is not free.

    It is not free on a device, which the host would wait for, in compiled code, inside transforms of torch.func, and
    for more than `MOST` numbers, or for none. So what depends on it may leave arithmetic out, and never change a
    result.
    """
    size = tensor.numel()
    if not tensor.is_cpu or not 0 < size <= MOST or torch.compiler.is_compiling():
        return None
    try:
        if size <= FEW:
            return tensor.tolist() if tensor.dim() < 2 else tensor.flatten().tolist()
        return tensor.detach().numpy()
    except (RuntimeError, TypeError):  # it has no numbers that can be read: fakes, batches of vmap, bfloat16
        return None
