"""Attention that nobody has computed yet, to be computed for some samples at a time.

B batch, H heads, L queries, S keys, D features of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor as is_wrapped
from torch.nn import Parameter

from hookbrew.taps.attention import Dense
from hookbrew.taps.hook import Point, Store
from hookbrew.taps.multihead import Multihead
from hookbrew.taps.products import bare
from hookbrew.taps.read import rewritten


class Map(NamedTuple):
    """The map of one call, (B, H, L, S): probabilities or scores, as its port says."""

    record: Dense | Multihead
    port: str

    @property
    def shape(self) -> torch.Size:
        """(B, H, L, S)."""
        return self.record.shape

    @property
    def nbytes(self) -> int:
        """What it would take, in fp32 at least."""
        wide = max((t.itemsize for t in self.record.tensors() if t is not None and t.is_floating_point()), default=0)
        return self.shape.numel() * max(torch.float32.itemsize, wide)

    @property
    def device(self) -> torch.device:
        """Where it would be."""
        return next(tensor.device for tensor in self.record.tensors() if tensor is not None)

    def dense(self) -> Dense:
        """What is multiplied; queries and keys are projected here where the model keeps its own to itself."""
        if isinstance(self.record, Dense):
            return self.record
        with torch.autocast(self.record.query.device.type, enabled=False):
            return self.record.dense(self.port)


def unread(point: Point, number: int, store: Store) -> Map | None:
    """The map of a call of the last forward, if nobody has computed it and some samples of it may be computed alone.

    None for one that was computed, by the model itself or for a reader, or that reading would refuse; for a mask that
    learns, and for what compiled code, transforms of torch.func or classes of tensors of their own see differently.
    """
    assert store.calls is not None
    seen = store.calls[point][number]
    record = seen.value
    if not isinstance(record, Dense | Multihead) or point.port not in ("attn", "scores"):
        return None
    if store.graded and not seen.graded:
        return None
    if not record.apart:
        return None
    tensors = [tensor for tensor in record.tensors() if tensor is not None]
    if rewritten(record.tensors(), seen.versions) or not all(map(lone, tensors)):
        return None
    return Map(record, point.port)


def lone(tensor: Tensor) -> bool:
    """Whether a tensor, or a weight of a model, is nothing more than that."""
    plain = tensor.detach() if type(tensor) is Parameter else tensor
    return bare(plain) and not is_wrapped(plain)
