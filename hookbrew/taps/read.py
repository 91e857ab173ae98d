"""From what hooks saw to tensors: which call is meant, and whether the tensor is still what it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import maybe_current_level, maybe_get_level

from hookbrew.errors import AmbiguousCallError, MutatedError, NotCalledError, SelectorError
from hookbrew.taps.attention import ATTENTION, densified
from hookbrew.taps.hook import Point, Seen, Store
from hookbrew.taps.resolve import unwrap
from hookbrew.taps.selector import Range


def numbers(point: Point, model: nn.Module, count: int, call: int | Range | None) -> list[int]:
    """The numbers of the calls that are meant, out of those of one forward of the model."""
    if not count:
        raise NotCalledError(uncalled(point, model))
    if call is None and count > 1:
        raise AmbiguousCallError(
            f"{point} was called {count} times in one forward; add a call index: '#0', '#-1', '#::{count - 1}' or '#*'"
        )
    if isinstance(call, Range):
        found = list(range(count))[call.slice()]
    else:
        number = call or 0
        found = [number % count] if -count <= number < count else []
    if not found:
        raise SelectorError(f"{point}: call '#{call}' is out of range: it was called {count} time(s) in this forward")
    return found


def uncalled(point: Point, model: nn.Module) -> str:
    """Why a hook has seen nothing."""
    module = unwrap(model).get_submodule(point.path)
    text = f"{point}: module {type(module).__name__} was not called in this forward"
    if compiled(model):
        return (
            f"{text}, or the taps came too late: hooks that are installed after the first call of a compiled model"
            " never run. Install the taps before that call, or call torch.compiler.reset()"
        )
    return f"{text} (parents read its weights directly or skip it)"


def value(name: str, point: Point, number: int, store: Store, model: nn.Module) -> Tensor:
    """One tensor of the last forward of the model; attention is computed when it is read first."""
    assert store.calls is not None
    seen = store.calls[point][number]
    if store.memo and (key := (point, number, torch.is_grad_enabled())) in store.memo:
        return store.memo[key]
    # Asked last: a model with adapters may have thousands of parameters before the first that is trained.
    lost = store.graded and not seen.graded and any(parameter.requires_grad for parameter in model.parameters())
    found = checked(name, point, seen, lost=lost)
    if found is not seen.value:
        store.computed(point, number, found)
    return found


def checked(name: str, point: Point, seen: Seen, *, lost: bool) -> Tensor:
    """The tensor, if there is one and nothing has happened to it; nested ones are filled up with zeros.

    lost: whether it should have a gradient, and the model computed it without.
    """
    kept, written = seen.value, seen.versions
    if isinstance(kept, Tensor) and not lost:  # nearly always
        same = not written or written[0] < 0 or kept._version == written[0]
        if same and not escaped(kept):
            return densified(kept) if kept.is_nested else kept
    if isinstance(seen.value, str):
        raise SelectorError(f"{point}: {seen.value}")
    tensors: tuple[Any, ...] = (seen.value,) if isinstance(seen.value, Tensor) else seen.value.tensors()
    if rewritten(tensors, seen.versions):
        raise MutatedError(
            f"{point}: the tensor of tap {name!r} was changed in place after it was seen; tap the next module's input"
            " (':in' of the one that runs after the change), or use Taps(..., clone=True)"
        )
    if any(isinstance(tensor, Tensor) and escaped(tensor) for tensor in tensors):
        raise SelectorError(f"{point}: the tensor of tap {name!r} lives inside torch.func.vmap; read it there")
    if lost:
        raise SelectorError(
            f"{point}: the model computed the tensor of tap {name!r} without a gradient, in a checkpoint or under"
            " no_grad; use_reentrant=False keeps it in checkpoints, and under torch.no_grad() run() asks for none"
        )
    assert not isinstance(seen.value, Tensor)
    try:
        return seen.value.read(point.port)
    except SelectorError as error:
        raise SelectorError(f"{point}: {error}") from None


def rewritten(tensors: Sequence[Any], versions: Sequence[int]) -> bool:
    """Whether one of some tensors was written into since it had been so often."""
    return any(old >= 0 and tensor._version != old for tensor, old in zip(tensors, versions, strict=False))


def escaped(tensor: Tensor) -> bool:
    """Whether a tensor is one example of a batch that torch.func.vmap has left behind."""
    return maybe_get_level(tensor) > (maybe_current_level() or 0)


def whole(model: nn.Module, taps: Mapping[str, Sequence[Point]]) -> str | None:
    """Why no forward of the model can end before its output, given the points of each tap; None if one can."""
    for name, points in taps.items():
        if any(point.path == "" and point.late for point in points):
            return f"tap {name!r} reads the model's own output, so no forward can stop before that"
        # Measured on torch 2.13: once a forward was stopped, the hooks of such modules do not run any more.
        if any(point.port in ATTENTION for point in points) and compiled(model):
            return f"tap {name!r} reads attention in compiled code, where no forward can stop; leave stop=True out"
    return None


def compiled(model: nn.Module) -> bool:
    """Whether torch.compile runs the model, or a part of it."""
    return any("_orig_mod" in module._modules or module._compiled_call_impl is not None for module in model.modules())
