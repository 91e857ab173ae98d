"""The most memory that a forward has in use at one time, beyond what was there before it.

On CUDA its allocator says. Elsewhere every operation of torch is seen, and the bytes of what it returned and nobody
has let go of yet; what a kernel uses for itself meanwhile is not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


def peak(call: Callable[[], object], device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    with Living() as living:
        call()
    return int(living.most)


class Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Knows the memory that operations made while it is on, as long as it is in use."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._made: dict[int, tuple[Any, int]] = {}
        self._before: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._free()
        for tensor in tensors((args, kwargs)):  # weights, and the batch: they were there
            self._note(tensor, made=False)
        output = func(*args, **(kwargs or {}))
        for tensor in tensors(output):
            self._note(tensor, made=True)
        self.most = max(self.most, sum(size for _, size in self._made.values()))
        return output

    def _note(self, tensor: Tensor, *, made: bool) -> None:
        storage = tensor.untyped_storage()
        where = storage._cdata
        if where in self._made or where in self._before:
            return
        if made:
            self._made[where] = ref(storage), storage.nbytes()
        else:
            self._before[where] = ref(storage)

    def _free(self) -> None:
        self._made = {where: (held, size) for where, (held, size) in self._made.items() if not held.expired()}


def ref(storage: torch.UntypedStorage) -> Any:
    """What knows whether a memory is still in use, and does not keep it."""
    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]


def tensors(value: Any) -> list[Tensor]:
    """The tensors in what an operation is given or gives."""
    return [leaf for leaf in tree_iter(value) if isinstance(leaf, Tensor)]
