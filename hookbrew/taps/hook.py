"""The hooks: small callables that put what a module is given or gives into a store, and return None."""

from __future__ import annotations

import weakref
from threading import get_ident
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hookbrew.errors import SelectorError
from hookbrew.taps.pick import PORTS, Port, pick


@attrs.frozen
class Point:
    """Where one hook reads: a module, a side of its call, and the element of it."""

    path: str
    port: str
    picks: tuple[str | int, ...]

    def __str__(self) -> str:
        return f"{self.path}:{self.port}"


Seen = tuple[Tensor | str, int]
"""A tensor, or the reason why there is none; and the tensor's version when it was seen (-1: not counted)."""


class Store:
    """What the hooks of one Taps object saw in one forward. Knows no module, so that nothing forms a cycle."""

    def __init__(self, *, clone: bool) -> None:
        self.clone = clone
        self.active = False
        self.thread = 0
        self.calls: dict[Point, list[Seen]] | None = None

    def put(self, point: Point, port: Port, value: Any) -> None:
        """Keep the tensor of one call; a mistake waits for the reader, since the model may catch exceptions."""
        try:
            tensor = pick(value, point.picks, port.noun)
        except SelectorError as error:
            seen: Seen = str(error), -1
        else:
            tensor = tensor.clone() if self.clone else tensor
            # Neither compiled code nor inference tensors count versions.
            uncounted = torch.compiler.is_compiling() or tensor.is_inference()
            seen = tensor, -1 if uncounted else tensor._version
        if self.calls is not None:
            self.calls.setdefault(point, []).append(seen)


class Inert:
    """What a copy or a pickle of a tapped model has in place of a hook."""

    def __call__(self, *_: object) -> None:
        """Do nothing."""


class Hook:
    """Puts what a module is given or gives into a store, during `run()` and in its thread only."""

    def __init__(self, module: nn.Module, point: Point, store: Store) -> None:
        self.module = weakref.ref(module)
        self.point = point
        self.port = PORTS[point.port]
        self.store = store

    def __call__(self, module: nn.Module, args: tuple[Any, ...], last: Any) -> None:
        # A shallow copy of a module shares its hooks, and other threads may run the same model.
        if not self.store.active or self.module() is not module:
            return
        if not torch.compiler.is_compiling() and get_ident() != self.store.thread:
            return
        self.store.put(self.point, self.port, self.port.take(args, last))

    def __deepcopy__(self, memo: dict[int, Any]) -> Inert:
        return Inert()

    def __reduce__(self) -> tuple[type[Inert], tuple[()]]:
        return Inert, ()


def install(module: nn.Module, point: Point, store: Store) -> RemovableHandle:
    """Hook a module on the side that the point's port asks for."""
    hook = Hook(module, point, store)
    if hook.port.before:
        return module.register_forward_pre_hook(hook, with_kwargs=True)
    return module.register_forward_hook(hook)
