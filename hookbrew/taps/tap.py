"""Taps: forward hooks that bring tensors out of a model while `run()` runs it, and change nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import get_ident
from types import TracebackType
from typing import Any, Self

from torch import nn

from hookbrew.errors import SelectorError
from hookbrew.taps.alias import expanded, is_alias
from hookbrew.taps.hook import Point, Read, StopForward, Store
from hookbrew.taps.install import Installed, require_ready
from hookbrew.taps.layout import Layout, discover
from hookbrew.taps.maps import unread
from hookbrew.taps.parse import parse
from hookbrew.taps.probe import lent
from hookbrew.taps.read import numbers, value, whole
from hookbrew.taps.resolve import resolve, submodule, unchanged, unwrap
from hookbrew.taps.selector import Selector
from hookbrew.words import several


class Taps:
    """Named taps of one model. Selectors are resolved here: every SelectorError about the model comes now.

    `with` installs the hooks and removes them; `run()` is a forward that is recorded, any other is not.
    `taps[name]` is a tensor, or a list if the selector is spelled with `* ? { ,` or a slice: by module in the
    model's order, then by call. Values keep the graph, and live until the next `run()` or as long as the taps.

    clone: the hooks copy what they see, for models that change it in place afterwards.
    stop: after a first forward that reaches all taps, end each forward with the last tensor that they read. Calls of a
    module beyond those of the first forward are not waited for.
    layout: what `discover` found, for the aliases hidden[i] and attention[i]; without it the first `run()`
    makes one forward more, without gradients and in evaluation mode, to find out.
    """

    def __init__(
        self,
        model: nn.Module,
        selectors: Mapping[str, str],
        *,
        clone: bool = False,
        stop: bool = False,
        layout: Layout | None = None,
    ) -> None:
        self._model, self._inner = model, unwrap(model)
        self._modules: dict[Point, nn.Module] = {}
        self._taps: dict[str, tuple[bool, list[Read]]] = {}
        self._pending: dict[str, Selector] = {}
        self._store = Store(clone=clone)
        self._hooks: Installed | None = None
        for name, text in selectors.items():
            selector = parse(text)
            if is_alias(self._inner, selector):
                self._pending[name] = selector
            else:
                found = resolve(self._inner, selector)
                reads = [Read(Point(path, selector.port, selector.picks), selector.call) for path in found]
                self._add(name, selector, reads)
        if layout is not None:
            for name in self.pending:
                self.settle(name, layout)
        if stop and self.whole:
            raise SelectorError(self.whole)
        self.stop = stop

    @property
    def paths(self) -> dict[str, list[str]]:
        """What each tap reads, as selectors without globs or aliases, by the name of the tap."""
        return {name: [str(read) for read in reads] for name, (_, reads) in self._taps.items()}

    @property
    def pending(self) -> tuple[str, ...]:
        """The taps whose selector is an alias, until it is known what it stands for."""
        return tuple(self._pending)

    @property
    def whole(self) -> str | None:
        """Why all forwards have to be whole; None if they can stop."""
        return whole(self._model, {name: [read.point for read in reads] for name, (_, reads) in self._taps.items()})

    @property
    def stop(self) -> bool:
        """Whether forwards end with the last tensor that is read; setting it forgets where that was."""
        return self._stop

    @stop.setter
    def stop(self, stop: bool) -> None:
        """The next forward is whole in either case."""
        self._stop, self._store.need = stop, None

    @property
    def last(self) -> str | None:
        """With `stop`, the module at which forwards end, `:in` if before it; None until one has been whole."""
        return self._store.last.where if self._store.need and self._store.last else None

    def settle(self, name: str, layout: Layout) -> None:
        """Resolve the alias of a tap; SelectorError says what it does not have."""
        selector = self._pending[name]
        self._add(name, selector, expanded(selector, layout))
        del self._pending[name]
        if self._hooks is not None:
            self._hooks.close()
            self._hooks = Installed(self._modules, self._store)

    def _add(self, name: str, selector: Selector, reads: list[Read]) -> None:
        for read in reads:
            self._modules[read.point] = submodule(self._inner, read.point.path)
        self._taps[name] = selector.many, reads

    def __enter__(self) -> Self:
        if self._hooks is not None:
            raise SelectorError("these taps are installed already; make another Taps object")
        unchanged(self._inner, {point.path: module for point, module in self._modules.items()})
        self._hooks = Installed(self._modules, self._store)
        self._store.thread = get_ident()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        hooks, self._hooks = self._hooks, None
        if hooks is not None:
            hooks.close()

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Forget what was seen, run the model as it was given (wrapped or not), and return its output.

        None if the forward was stopped.
        """
        if self._hooks is None or self._stop:
            require_ready(self._hooks, self._model, stop=self._stop)
        if self._pending:
            layout = self.survey(*args, **kwargs)
            for name in self.pending:
                self.settle(name, layout)
        if self._stop and self._store.need is None and (why := self.whole):
            raise SelectorError(why)
        assert self._hooks is not None
        self._store.begin()
        try:
            for hook in self._hooks.before:
                hook.call(hook.module, args, kwargs)
            output = self._model(*args, **kwargs)
            for hook in self._hooks.after:
                hook.call(hook.module, args, kwargs, output)
        except StopForward:
            return None
        except BaseException:
            self._store.forget()
            raise
        finally:
            self._store.end()
        if self._stop and self._store.need is None:
            self._store.learn(self._modules)
        return output

    def survey(self, *args: Any, **kwargs: Any) -> Layout:
        """What the model is made of, from one forward that changes nothing and is not recorded."""
        given, named = lent((args, kwargs))
        return discover(self._inner, lambda: self._inner(*given, **named))

    def clear(self) -> None:
        """Forget what was seen, before the next `run()` would."""
        self._store.forget()

    def __getitem__(self, name: str) -> Any:
        """A Tensor or a list of them. NotCalledError, AmbiguousCallError, or SelectorError says what is missing."""
        return self._each(name, lambda point, number: value(name, point, number, self._store, self._inner))

    def maps(self, name: str) -> Any:
        """As `taps[name]`, with what `unread` gives in place of each tensor: attention that nobody has computed yet."""
        return self._each(name, lambda point, number: unread(point, number, self._store))

    def _each(self, name: str, look: Callable[[Point, int], Any]) -> Any:
        """What a look at each call gives that a tap reads."""
        if name not in self._taps and name not in self._pending:
            known = [*self._taps, *self._pending]
            raise SelectorError(f"no tap is named {name!r}; there are: {several(known, most=20) or 'none'}")
        calls = self._store.calls
        if calls is None or self._store.active:
            raise SelectorError(f"tap {name!r} has nothing to read: no forward has gone through run()")
        many, reads = self._taps[name]
        found = []
        for read in reads:
            count = len(calls.get(read.point, ()))
            which = (0,) if count == 1 and not read.call else numbers(read.point, self._model, count, read.call)
            found += [look(read.point, number) for number in which]
        return found if many else found[0]


def tap(model: nn.Module, /, **selectors: str) -> Taps:
    """Taps by keyword: `with tap(model, hidden="encoder.layer[*]") as taps: taps.run(**batch)`."""
    return Taps(model, selectors)
