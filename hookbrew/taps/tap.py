"""Taps: forward hooks that bring tensors out of a model while `run()` runs it, and change nothing."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from threading import get_ident
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn

from hookbrew.errors import AmbiguousCallError, NotCalledError, SelectorError
from hookbrew.taps.hook import Point, Seen, Store, install
from hookbrew.taps.parse import parse
from hookbrew.taps.pick import PORTS
from hookbrew.taps.resolve import resolve, unwrap
from hookbrew.taps.selector import Range, Selector
from hookbrew.words import several


class Taps:
    """Named taps of one model. Selectors are resolved here: every SelectorError about the model comes now.

    `with` installs the hooks and removes them; `run()` is a forward that is recorded, any other is not.
    `taps[name]` is a tensor, or a list if the selector is spelled with `* ? { ,` or a slice: by module in the
    model's order, then by call. Values keep the graph, and live until the next `run()` or as long as the taps.
    With `clone=True` the hooks copy what they see, for models that change it in place afterwards.
    """

    def __init__(self, model: nn.Module, selectors: Mapping[str, str], *, clone: bool = False) -> None:
        self._model = model
        self._modules: dict[Point, nn.Module] = {}
        self._taps: dict[str, tuple[Selector, list[Point]]] = {}
        self._store = Store(clone=clone)
        self._hooks: ExitStack | None = None
        inner = unwrap(model)
        for name, text in selectors.items():
            selector = parse(text)
            found = {Point(path, selector.port, selector.picks): m for path, m in resolve(inner, selector).items()}
            self._modules |= found
            self._taps[name] = selector, list(found)

    @property
    def paths(self) -> dict[str, list[str]]:
        """The full path of each module that a tap reads, by the name of the tap; the model itself is ''."""
        return {name: [point.path for point in points] for name, (_, points) in self._taps.items()}

    def __enter__(self) -> Self:
        if self._hooks is not None:
            raise SelectorError("these taps are installed already; make another Taps object")
        with ExitStack() as stack:
            for point, module in self._modules.items():
                if point.path:
                    stack.callback(install(module, point, self._store).remove)
            self._store.thread = get_ident()
            self._hooks = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        hooks, self._hooks = self._hooks, None
        if hooks is not None:
            hooks.close()

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Forget what was seen, run the model as it was given (wrapped or not), and return its output."""
        if self._hooks is None:
            raise SelectorError("these taps are not installed: call run() inside `with tap(...) as taps:`")
        if get_ident() != self._store.thread:
            raise SelectorError("these taps were installed by another thread; make one Taps object in each thread")
        if self._store.active:
            raise SelectorError("run() was called inside run(); make another Taps object for the inner forward")
        self._store.calls, self._store.active = {}, True
        try:
            self._see(args, kwargs, before=True)
            output = self._model(*args, **kwargs)
            self._see(args, output, before=False)
            return output
        except BaseException:
            self._store.calls = None
            raise
        finally:
            self._store.active = False

    def _see(self, args: tuple[Any, ...], last: Any, *, before: bool) -> None:
        """The model itself needs no hook, which torch.compile would leave outside of its graph."""
        for point in self._modules:
            if point.path == "" and PORTS[point.port].before == before:
                self._store.put(point, PORTS[point.port], PORTS[point.port].take(args, last))

    def clear(self) -> None:
        """Forget what was seen, before the next `run()` would."""
        self._store.calls = None

    def __getitem__(self, name: str) -> Any:
        """A Tensor or a list of them. NotCalledError, AmbiguousCallError, or SelectorError says what is missing."""
        if name not in self._taps:
            raise SelectorError(f"no tap is named {name!r}; there are: {several(self._taps, most=20) or 'none'}")
        if self._store.calls is None or self._store.active:
            raise SelectorError(f"tap {name!r} has nothing to read: no forward has gone through run()")
        selector, points = self._taps[name]
        read = [
            checked(name, point, seen)
            for point in points
            for seen in called(point, self._modules[point], self._store.calls.get(point, []), selector.call)
        ]
        return read if selector.many else read[0]


def called(point: Point, module: nn.Module, calls: list[Seen], call: int | Range | None) -> list[Seen]:
    """The calls that a selector means, out of those of one forward."""
    if not calls:
        raise NotCalledError(
            f"{point}: module {type(module).__name__} was not called in this forward"
            " (parents read its weights directly or skip it)"
        )
    count = len(calls)
    if call is None and count > 1:
        raise AmbiguousCallError(
            f"{point} was called {count} times in one forward; add a call index: '#0', '#-1', '#::{count - 1}' or '#*'"
        )
    if isinstance(call, Range):
        found = calls[call.slice()]
    else:
        number = call or 0
        found = [calls[number]] if -count <= number < count else []
    if not found:
        raise SelectorError(f"{point}: call '#{call}' is out of range: it was called {count} time(s) in this forward")
    return found


def checked(name: str, point: Point, seen: Seen) -> Tensor:
    """The tensor, if the pick found one and nothing has written into it since."""
    tensor, version = seen
    if isinstance(tensor, str):
        raise SelectorError(f"{point}: {tensor}")
    if version >= 0 and tensor._version != version:
        raise SelectorError(
            f"{point}: the tensor of tap {name!r} was changed in place after it was seen; tap the next module's input"
            " (':in' of the one that runs after the change), or use Taps(..., clone=True)"
        )
    return tensor


def tap(model: nn.Module, /, **selectors: str) -> Taps:
    """Taps by keyword: `with tap(model, hidden="encoder.layer[*]") as taps: taps.run(**batch)`."""
    return Taps(model, selectors)
