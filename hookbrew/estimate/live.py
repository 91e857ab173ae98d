"""Bytes in use while a step is made: the most since they were last asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from hookbrew.compare.memory import ref, tensors


class Bytes(Protocol):
    """A count of the memory that was made since it began, and is still in use."""

    def now(self) -> int:
        """Bytes at this moment."""

    def since(self, going: int = 0) -> int:
        """The most since the last call; going: bytes that are let go of at this moment, and count no more."""


@contextmanager
def watched(device: torch.device) -> Iterator[Bytes]:
    """Memory is counted inside: by CUDA's allocator, elsewhere operation by operation."""
    if device.type == "cuda":
        yield Allocated(device)
        return
    with Alive() as alive:
        yield alive


class Allocated:
    """What CUDA's allocator says."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0
        self._before = self.now()
        self.since()

    def now(self) -> int:
        """Bytes at this moment."""
        torch.cuda.synchronize(self._device)
        return int(torch.cuda.memory_allocated(self._device)) - self._before

    def since(self, going: int = 0) -> int:
        """The most since the last call; what is going is still in the next one: the allocator has no other zero."""
        torch.cuda.synchronize(self._device)
        most = int(torch.cuda.max_memory_allocated(self._device)) - self._before
        torch.cuda.reset_peak_memory_stats(self._device)
        return most


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What operations made; also of FSDP2, whose storages grow and shrink without an operation.

    Whether a storage is still there is asked only where what was made since could be more than ever: asking for all of
    them at each operation would take longer than these do.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}
        self._before: dict[int, StorageWeakRef] = {}
        self._bound = self._most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if shared(types):
            return NotImplemented  # it makes operations on what this process has, which are seen
        for tensor in tensors((args, kwargs)):  # weights, and the batch: they were there
            self._note(tensor, made=False)
        output = func(*args, **(kwargs or {}))
        for tensor in tensors(output):
            self._note(tensor, made=True)
        if self._bound > self._most:
            self._most = max(self._most, self.now())
        return output

    def now(self) -> int:
        """Bytes at this moment."""
        sizes = {where: (held, size(held)) for where, (held, _) in self._made.items() if not held.expired()}  # type: ignore[no-untyped-call]
        self._made = sizes
        self._bound = sum(each for _, each in sizes.values())
        return self._bound

    def since(self, going: int = 0) -> int:
        """The most since the last call; going: bytes that are let go of at this moment, and count no more."""
        here = self.now()
        most, self._most = max(self._most, here), here - going
        return most

    def _note(self, tensor: Tensor, *, made: bool) -> None:
        storage = tensor.untyped_storage()
        if storage.device.type == "meta":
            return  # shapes alone: FSDP2 finds out by them what an operation gives
        where, here = storage._cdata, storage.nbytes()
        if where in self._made:
            held, known = self._made[where]
            if here != known:
                self._made[where] = held, here
                self._bound += max(0, here - known)
        elif where not in self._before:
            if made:
                self._made[where] = ref(storage), here
                self._bound += here
            else:
                self._before[where] = ref(storage)


def size(held: StorageWeakRef) -> int:
    """Bytes of a storage as it is now; 0 when it is gone."""
    storage = torch.UntypedStorage._new_with_weak_ptr(held.cdata)
    return 0 if storage is None else int(storage.nbytes())


def shared(types: Any) -> bool:
    """Whether tensors of several processes are among these types."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(issubclass(kind, module.DTensor) for kind in types)
