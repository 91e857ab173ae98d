"""What every callback does. `check_callback(Tensorboard())` checks it all.

First its form, then that it observes: a tiny training is run with it and without it, and both are the same. Its
evaluations give an accuracy. A callback that asks for something, with `state.request_stop` or `state.request_eval`, is
exempt from `asks_nothing` with a reason.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import attrs
import torch
from torch import Tensor

from hookbrew import words
from hookbrew.testing.diary import Diary, kept
from hookbrew.testing.kit import Kit, law, require

STATE = ("state_dict", "load_state_dict")


@attrs.frozen(eq=False)
class Observer:
    """A callback."""

    options: Any
    callback: Any
    diaries: list[Diary]
    """Of the training with it, once there was one: several laws look at the same."""

    @property
    def diary(self) -> Diary:
        """Of the training with one that is built anew."""
        if not self.diaries:
            self.diaries.append(kept(self.options.build))
        return self.diaries[0]

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


@law()
def weights_untouched(observer: Observer) -> None:
    """The same batches come, and parameters, buffers and gradients are the same bit for bit."""
    require_same(observer, "weights")


@law()
def random_untouched(observer: Observer) -> None:
    """The random numbers of torch, Python and NumPy go on as without it."""
    require_same(observer, "random")


@law()
def models_untouched(observer: Observer) -> None:
    """Models keep their modes and what of them is trained, and no hook stays on them."""
    require_same(observer, "models")


@law()
def state_untouched(observer: Observer) -> None:
    """The fields of the state are not changed; it may add numbers to the record and to the metrics."""
    require_same(observer, "state")


@law()
def asks_nothing(observer: Observer) -> None:
    """The same events come: it asks for no stop and no evaluation."""
    plain, watched = alone(), observer.diary
    require(watched.stopped is None, f"it asks for a stop: {watched.stopped}")
    one, other = (
        [entry.key for entry in diary.entries if not entry.event.startswith("checkpoint")] for diary in (plain, watched)
    )
    for (event, step, _), (event_, step_, _) in zip(one, other, strict=False):
        told = f"{event_} comes at step {step_} and not {event} of step {step}"
        require((event, step) == (event_, step_), f"with it, {told}")


@law()
def writes_inside(observer: Observer) -> None:
    """It writes into the run folder alone."""
    outside = observer.diary.outside
    require(not outside, f"it writes beside the run folder: {', '.join(outside)}")


@law()
def survives_abort(observer: Observer) -> None:
    """When the run fails, it raises nothing more."""
    failures = kept(observer.options.build, broken=True).failures
    require(not failures, "; ".join(failures))


@cache
def alone() -> Diary:
    """The diary of the training without a callback, the same in every check."""
    return kept(None)


def require_same(observer: Observer, sort: str) -> None:
    """Raise AssertionError unless a training with the callback has the same facts of one sort at each event."""
    plain, watched = alone(), observer.diary
    found = {entry.key: entry for entry in watched.entries}
    for entry in plain.entries:
        if entry.key in found:  # events that a request of it takes away or adds are the affair of asks_nothing
            changed = differing(getattr(entry, sort), getattr(found[entry.key], sort))
            require(not changed, f"with it, {changed} is another one at {entry}")


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The first of the facts that is not the same in another training; empty if all are."""
    return next((name for name in one if name not in other or not alike(one[name], other[name])), "")


def alike(one: Any, other: Any) -> bool:
    """Equality that looks into tensors, mappings and sequences."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, Sequence) and isinstance(other, Sequence) and not isinstance(one, str | bytes):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


def observers(options: Any, diaries: list[Diary]) -> Iterator[Observer]:
    """The one subject."""
    yield Observer(options, options.build(), diaries)


PROPERTIES = (
    fresh_for_each_run,
    methods_are_events,
    one_argument,
    state_both_ways,
    state_round_trip,
    weights_untouched,
    random_untouched,
    models_untouched,
    state_untouched,
    asks_nothing,
    writes_inside,
    survives_abort,
)

check_callback = Kit("callback", observers, PROPERTIES, lambda: {"diaries": []})
"""check_callback(options, exempt=None): AssertionError unless the callback has all of PROPERTIES."""
