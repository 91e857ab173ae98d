"""Callbacks become a table: event name -> bound methods in the order of their priorities.

pluggy checks names and signatures when a callback is attached; the calls themselves go through plain
tuples, which cost a tenth of a microsecond a callback and know whose method is running. A method with
filters is called through a function that checks them; all others pay nothing for that. A callback that
says of itself that it is optional leaves the table when it raises, and the run goes on.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pluggy

from hookbrew import words
from hookbrew.errors import CallbackError, HookbrewError
from hookbrew.loop.events import EVENTS, Events
from hookbrew.loop.gate import gated, require_filters
from hookbrew.loop.state import State
from hookbrew.plugin import blame, filters
from hookbrew.shield import shielded

log = logging.getLogger("hookbrew")
STATEFUL = ("state_dict", "load_state_dict")
"""The public methods that a callback may have besides events."""


class Attached(pluggy.PluginManager):
    """The callbacks of one run; every public method of theirs is taken for an event."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        """Methods need no marker: their names are checked in `attach`."""
        return {} if name in EVENTS else None


class Dispatch:
    """Calls the callbacks of one run."""

    def __init__(self, callbacks: Iterable[tuple[str, object]] = ()) -> None:
        """callbacks: (name, instance); called by ascending `priority`, those of one priority in this order."""
        callbacks = list(callbacks)
        self._stateful = dict(stateful(callbacks))
        manager = Attached("hookbrew")
        manager.add_hookspecs(Events)
        for position, (name, callback) in enumerate(callbacks):
            attach(manager, f"{name}#{position}", name, callback)
        numbered = enumerate(callbacks)
        self._optional = {f"{name}#{place}" for place, (name, made) in numbered if getattr(made, "optional", False)}
        self._disabled = set[str]()
        self._table: dict[str, tuple[tuple[str, Callable[..., None]], ...]] = {
            event: tuple(
                (impl.plugin_name, function)
                for impl in sorted(getattr(manager.hook, event).get_hookimpls(), key=rank)
                if (function := gated(event, impl.function)) is not None
            )
            for event in EVENTS
        }

    def state_dict(self) -> dict[str, Any]:
        """The state of each callback that has one, by name; `name.2` is the second of the same name."""
        return {key: callback.state_dict() for key, callback in self._stateful.items()}

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Give the callbacks their states back; raises CallbackError when there are other ones than were saved."""
        if states.keys() != self._stateful.keys():
            saved, here = (words.several(sorted(keys)) or "none" for keys in (states, self._stateful))
            raise CallbackError(f"the checkpoint has the state of the callbacks {saved}, and this run has {here}")
        for key, callback in self._stateful.items():
            callback.load_state_dict(states[key])

    def fire(self, event: str, state: State) -> None:
        """Call every callback that has this event; the first exception gets a note and ends the run.

        That of an optional callback disables it instead, but for what a user can mend before the first step.
        """
        for key, function in self._table[event]:
            try:
                function(state=state)
            except BaseException as error:
                mended = event == "run_start" and isinstance(error, HookbrewError)
                if key in self._optional and isinstance(error, Exception) and not mended:
                    self._disable(key, event, state, error)
                    continue
                blame(error, function, f"raised by callback {named(key)!r} in event {event}, step {state.step}")
                raise

    def finish(self, event: str, state: State) -> None:
        """Call every callback although the run is failing: errors here are logged, never raised.

        Ctrl-C is raised, when all have been called.
        """
        interrupt: BaseException | None = None
        for key, function in self._table[event]:
            try:
                function(state=state)
            except Exception as error:
                if key in self._optional:
                    self._disable(key, event, state, error)
                else:
                    log.exception("callback %r failed in event %s", named(key), event)
            except BaseException as error:
                interrupt = interrupt or error
        if interrupt is not None:
            raise interrupt

    def _disable(self, key: str, event: str, state: State, error: Exception) -> None:
        """Call it no more but to close what it holds; say so once, and write down why."""
        if key in self._disabled:
            return  # it is closed although it is broken
        self._disabled.add(key)
        for other, entries in self._table.items():
            if other != "close":
                self._table[other] = tuple(entry for entry in entries if entry[0] != key)
        name, told = named(key), " ".join(f"{type(error).__name__}: {error}".strip(": ").split())
        where = f"event {event}, step {state.step}"
        log.warning("callback %r is disabled: it raised %s in %s; the run goes on without it", name, told, where)
        log.debug("what callback %r raised", name, exc_info=error)
        state.degraded.append({"callback": name, "event": event, "step": state.step, "error": told})


def named(key: str) -> str:
    """The name of a callback, of `name#position`."""
    return key.rpartition("#")[0]


@contextmanager
def reported(dispatch: Dispatch, state: State) -> Iterator[None]:
    """`run_abort` after any exception, Ctrl-C included; `close` always, last."""
    try:
        yield
    except BaseException as error:
        with shielded():
            state.exception = error
            try:
                dispatch.finish("run_abort", state)
            finally:
                dispatch.finish("close", state)
            raise
    with shielded():
        dispatch.finish("close", state)


def stateful(callbacks: Iterable[tuple[str, object]]) -> Iterator[tuple[str, Any]]:
    """The callbacks with a state, by names that those without one do not change."""
    seen = Counter[str]()
    for name, callback in callbacks:
        if hasattr(callback, "state_dict"):
            seen[name] += 1
            yield (name if seen[name] == 1 else f"{name}.{seen[name]}"), callback


def rank(impl: pluggy.HookImpl) -> tuple[int, int]:
    """What the order is by: the priority of a callback, then its place in the configuration."""
    return getattr(impl.plugin, "priority", 0), int(impl.plugin_name.partition("#")[2])


def attach(manager: Attached, key: str, name: str, callback: object) -> None:
    """Register a callback after checking that each public method is an event, its filters and its priority.

    Raises CallbackError: a misspelt event would never fire, in silence.
    """
    if isinstance(callback, type):
        raise CallbackError(f"callback {name!r} is the class {callback.__name__}; give an instance of it")
    methods = [m for m in dir(callback) if not m.startswith("_") and callable(getattr(callback, m, None))]
    for method in methods:
        if method not in EVENTS and method not in STATEFUL:
            raise CallbackError(
                f"callback {name!r} has a method {method!r}, which is no event; "
                f"{words.hint(method, EVENTS)} (a name that begins with _ is left alone)"
            )
    if not set(methods) & set(EVENTS):
        raise CallbackError(f"callback {name!r} has no method named for an event; {words.hint('', EVENTS)}")
    require_sound(name, callback)
    try:
        manager.register(callback, name=key)
    except pluggy.PluginValidationError as error:
        raise CallbackError(f"callback {name!r}: an event takes exactly one argument, 'state': {error}") from error
    except ValueError as error:
        raise CallbackError(
            f"callback {name!r} is equal to one that is already attached; "
            "attach an instance once, and compare callbacks by identity (attrs: eq=False)"
        ) from error
    for hook in manager.get_hookcallers(callback) or ():
        for impl in hook.get_hookimpls():
            if impl.plugin is callback and tuple(impl.argnames) != ("state",):
                raise CallbackError(
                    f"callback {name!r}: {hook.name} takes {words.several(impl.argnames) or 'nothing'}; "
                    "an event takes exactly one argument, 'state'"
                )


def require_sound(name: str, callback: object) -> None:
    """Raise CallbackError for a priority that is none, for `optional` where that cannot be, and for wrong filters."""
    priority = getattr(callback, "priority", 0)
    if type(priority) is not int:
        raise CallbackError(f"callback {name!r}: priority is an integer, 0 without one; got {priority!r}")
    optional = getattr(callback, "optional", False)
    if type(optional) is not bool:
        raise CallbackError(f"callback {name!r}: optional is True or False, False without it; got {optional!r}")
    if optional and hasattr(callback, "state_dict"):
        raise CallbackError(
            f"callback {name!r} is optional, and has a state that checkpoints keep: "
            "a run that goes on without it would not be the same; leave out one of them"
        )
    for method in dir(callback):
        function = inspect.getattr_static(callback, method)
        if method in EVENTS:
            require_filters(f"callback {name!r}, {method}", method, function)
        elif filters(function):
            raise CallbackError(f"callback {name!r}: @when is for events, and {method!r} is none")
