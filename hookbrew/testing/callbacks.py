"""What every callback does. `check_callback(Tensorboard())` checks it all."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from hookbrew import words
from hookbrew.testing.kit import Kit, law, require

STATE = ("state_dict", "load_state_dict")


@attrs.frozen(eq=False)
class Observer:
    """A callback."""

    options: Any
    callback: Any

    @property
    def offers(self) -> frozenset[str]:
        """Which of the methods of STATE it has."""
        return frozenset(name for name in STATE if hasattr(self.callback, name))

    def methods(self) -> dict[str, Any]:
        """Its public methods by name, those of its state left out."""
        members = {name: getattr(self.callback, name) for name in dir(self.callback) if name[0] != "_"}
        return {name: value for name, value in members.items() if callable(value) and name not in STATE}


@law()
def fresh_for_each_run(observer: Observer) -> None:
    """build() gives a new object each time: two runs of one process share nothing."""
    fresh = observer.options.build()
    require(fresh is not observer.callback, "build() gives the same object twice")
    require(fresh != observer.callback, "two of them are equal, so one run cannot hold both; in attrs: eq=False")


@law()
def methods_are_events(observer: Observer) -> None:
    """Every public method is an event; others begin with an underscore."""
    from hookbrew.loop import EVENTS

    methods = observer.methods()
    for name in methods:
        require(name in EVENTS, f"{name!r} is no event; {words.hint(name, EVENTS)}")
    require(bool(methods), "it has no event, so it would never be called")


@law()
def one_argument(observer: Observer) -> None:
    """Every event takes exactly one argument, the state, called `state`."""
    for name, method in observer.methods().items():
        parameters = list(inspect.signature(method).parameters)
        require(parameters == ["state"], f"{name}({', '.join(parameters)}): expected {name}(state)")


@law()
def state_both_ways(observer: Observer) -> None:
    """state_dict and load_state_dict come together."""
    alone = f"it has {' and '.join(observer.offers)} alone; {' and '.join(STATE)} come together"
    require(len(observer.offers) != 1, alone)


@law(*STATE)
def state_round_trip(observer: Observer) -> None:
    """A new callback that loads the state of another one gives that state back."""
    state = observer.callback.state_dict()
    fresh = observer.options.build()
    fresh.load_state_dict(state)
    require(alike(fresh.state_dict(), state), f"loaded {state}, and it gives {fresh.state_dict()}")


def alike(one: Any, other: Any) -> bool:
    """Equality that looks into tensors, mappings and sequences."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, Sequence) and isinstance(other, Sequence) and not isinstance(one, str | bytes):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


def observers(options: Any) -> Iterator[Observer]:
    """The one subject."""
    yield Observer(options, options.build())


PROPERTIES = (fresh_for_each_run, methods_are_events, one_argument, state_both_ways, state_round_trip)

check_callback = Kit("callback", observers, PROPERTIES)
"""check_callback(options, exempt=None): AssertionError unless the callback has all of PROPERTIES."""
