"""The hooks: small callables that put what a module is given or gives into a store, and return None."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterable
from threading import get_ident
from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor, nn

from hookbrew.errors import SelectorError
from hookbrew.taps.attention import Dense, Soft
from hookbrew.taps.multihead import Multihead
from hookbrew.taps.pick import PORTS, pick
from hookbrew.taps.selector import ALIAS, Range, chosen


class Point(NamedTuple):
    """Where one hook reads: a module, a side of its call, and the element of it."""

    path: str
    port: str
    picks: tuple[str | int, ...] = ()

    @property
    def late(self) -> bool:
        """Whether it is read when the call is over."""
        return self.port not in PORTS or not PORTS[self.port].before

    @property
    def where(self) -> str:
        """The path of the module, with `:in` if this is before its call."""
        return self.path if self.late else f"{self.path}:in"

    def __str__(self) -> str:
        return f"{self.path}:{self.port}"


@attrs.frozen
class Read:
    """One tensor, or several, of a forward: what one hook keeps, in one or some of the module's calls."""

    point: Point
    call: int | Range | None = None

    def __str__(self) -> str:
        call = "" if self.call is None else f"#{self.call}"
        where, port = self.point.path + call, self.point.port + chosen(self.point.picks)
        if port == "out" and where != ALIAS:
            return where or ALIAS
        return f"{where}:{port}"


Record = Dense | Soft | Multihead
"""The attention of one call, not computed yet."""


class Seen(NamedTuple):
    """What a hook saw in one call."""

    value: Tensor | Record | str
    """A string is the reason why there is none."""
    versions: tuple[int, ...]
    """How often each tensor had been written into; empty where that is not counted."""
    graded: bool
    """Whether gradients were on."""


class StopForward(Exception):
    """Raised by the last hook that anybody waits for, and swallowed by `run()`.

    An Exception, since torch and context managers of models clean up after those.
    """


class Store:
    """What the hooks of one Taps object saw in one forward. Knows no module, so that nothing forms a cycle."""

    def __init__(self, *, clone: bool) -> None:
        self.clone = clone
        self.active = False
        self.thread = 0
        self.calls: dict[Point, list[Seen]] | None = None
        self.modes: list[Any] = []
        """Function modes that hooks have entered and not left."""
        self.need: dict[Point, int] | None = None
        """How many calls of each point there are in a forward; set where it may stop after the last of them."""
        self.left = 0
        """How many of those have not been seen."""
        self.last: Point | None = None
        """The point that was seen last."""
        self.graded = False
        """Whether gradients were on when the forward began."""
        self.memo: dict[tuple[Point, int, bool], Tensor] = {}
        """Attention that was read: by point, number of the call, and whether gradients were on at reading."""

    def begin(self) -> None:
        """Forget the last forward and record the next; SelectorError where it would be mixed up with another."""
        if get_ident() != self.thread:
            raise SelectorError("these taps were installed by another thread; make one Taps object in each thread")
        if self.active:
            raise SelectorError("run() was called inside run(); make another Taps object for the inner forward")
        self.memo.clear()
        self.calls, self.active = {}, True
        self.graded = torch.is_grad_enabled()
        self.left = sum(self.need.values()) if self.need else 0

    def learn(self, points: Iterable[Point]) -> None:
        """Let the next forwards stop where the one that was just recorded had its last call, if it reached all."""
        calls = self.calls or {}
        if all(point in calls for point in points):
            self.need = {point: len(seen) for point, seen in calls.items()}

    def forget(self) -> None:
        """Let go of what was seen."""
        self.calls = None
        self.memo.clear()

    def end(self) -> None:
        """Record no more, and leave what an exception has kept a hook from leaving."""
        self.active = False
        while self.modes:
            self.modes.pop().__exit__(None, None, None)

    def take(self, point: Point, value: Any) -> None:
        """Keep what the point's port and picks lead to; a mistake waits for the reader, as models may catch it."""
        found: Tensor | str = value
        if point.picks or not isinstance(value, Tensor):  # hardly ever, and between two layers code is cold
            try:
                found = pick(value, point.picks, PORTS[point.port].noun)
            except SelectorError as error:
                found = str(error)
        if self.clone and isinstance(found, Tensor):
            found = found.clone()
        self.put(point, found, versions(found))

    def put(self, point: Point, value: Tensor | Record | str, written: tuple[int, ...]) -> None:
        """Keep one call, and how often its tensors had been written into; StopForward if no more are needed."""
        if self.calls is None:
            return
        self.last = point
        seen = self.calls.setdefault(point, [])
        seen.append(Seen(value, written, torch.is_grad_enabled()))
        if self.need and len(seen) <= self.need.get(point, 0):
            self.left -= 1
            if self.left == 0:
                raise StopForward

    def computed(self, point: Point, number: int, found: Tensor) -> None:
        """Keep an attention that was computed, in place of what it came from unless another gradient may be wanted."""
        assert self.calls is not None
        seen = self.calls[point][number]
        if isinstance(seen.value, Dense | Soft | Multihead):
            if any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in seen.value.tensors()):
                self.memo[point, number, torch.is_grad_enabled()] = found
            else:
                self.calls[point][number] = Seen(found, (), seen.graded)

    def mine(self) -> bool:
        """Whether a forward of this thread is being recorded."""
        if torch.compiler.is_exporting():
            raise SelectorError("taps are on this model; leave their `with` block before you export it")
        return self.active and (torch.compiler.is_compiling() or get_ident() == self.thread)


def versions(*tensors: Any) -> tuple[int, ...]:
    """How often each was written into; -1 for what is no tensor, or does not count (compiled code, inference)."""
    if torch.compiler.is_compiling():
        return ()
    found = []
    for tensor in tensors:
        found.append(tensor._version if isinstance(tensor, Tensor) and not tensor.is_inference() else -1)
    return tuple(found)


class Inert:
    """What a copy or a pickle of a tapped model has in place of a hook."""

    def __call__(self, *_: object) -> None:
        """Do nothing."""


class Live:
    """What hooks have in common: they belong to one module and one store, and no copy of the module has them."""

    def __init__(self, module: nn.Module, store: Store) -> None:
        self.module = weakref.ref(module)
        self.store = store

    def mine(self, module: nn.Module) -> bool:
        """Whether to record: a shallow copy of a module shares its hooks, and other threads may run the model."""
        return self.store.mine() and self.module() is module

    def __deepcopy__(self, memo: dict[int, Any]) -> Inert:
        return Inert()

    def __reduce__(self) -> tuple[type[Inert], tuple[()]]:
        return Inert, ()


def tapped(model: nn.Module) -> list[str]:
    """The paths of modules that open taps read, the model itself left out: its hooks are called by `run()`."""

    def hooks(module: nn.Module) -> list[Any]:
        return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]

    return [path for path, module in model.named_modules() if any(isinstance(hook, Live) for hook in hooks(module))]


def parameters(module: nn.Module) -> tuple[str, ...]:
    """The names of what a module's forward takes, in order; none for code that has no signature."""
    try:
        return tuple(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        return ()


class Hook(Live):
    """Puts what a module is given or gives into a store, during `run()` and in its thread only."""

    def __init__(self, module: nn.Module, point: Point, store: Store) -> None:
        super().__init__(module, store)
        self.point = point
        self.side = PORTS[point.port].take
        self.names = parameters(module) if point.port == "in" else ()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], *last: Any) -> None:
        """last: the keyword arguments, and after the module its output."""
        if self.store.mine() and self.module() is module:  # as `mine`, with a call less
            self.store.take(self.point, self.side(self.names, args, last[-1]))

    def keep(self, _: nn.Module, args: tuple[Any, ...], *last: Any) -> None:
        """The same for one who knows that it is to be recorded."""
        self.store.take(self.point, self.side(self.names, args, last[-1]))
