"""What a forward computes: torch's own count of floating-point operations, with no kernel that it cannot see into."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def flops(module: nn.Module, inputs: Mapping[str, Any]) -> int:
    """Operations of one forward in matrix products, convolutions and attention; a product and its sum are two."""
    with torch.no_grad(), opened(), FlopCounterMode(display=False) as counter:
        module(**inputs)
    return int(counter.get_total_flops())


@contextmanager
def opened() -> Iterator[None]:
    """Fused kernels are taken apart inside: torch counts nothing for SDPA on a CPU, a whole encoder layer, or an LSTM.

    Compiled code runs as the Python that it was made from.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of formats that other devices have
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield
