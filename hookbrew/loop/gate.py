"""A method with filters becomes a function that calls it when they hold; one without stays what it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import distributed

from hookbrew import words
from hookbrew.errors import CallbackError
from hookbrew.loop.state import State
from hookbrew.plugin import filters

ANY = ("every", "every_epoch", "first", "main")
TAKES: dict[str, tuple[str, ...]] = {
    "run_start": ("first", "main"),
    **dict.fromkeys(("resumed", "run_end", "run_abort", "close"), ("main",)),
    **dict.fromkeys(("epoch_start", "epoch_end"), ("every_epoch", "first", "main")),
    **dict.fromkeys(("checkpoint_saving", "checkpoint_saved", "checkpoint_failed"), ("every", "every_epoch", "main")),
}
"""The filters that an event takes; ANY, if it is not here. Which checkpoint is the first, no state says."""


def require_filters(place: str, event: str, function: object) -> None:
    """Raise CallbackError for filters that are wrong, or mean nothing for this event.

    place: what the error begins with.
    """
    takes, every = TAKES.get(event, ANY), False
    for each in filters(function):
        if not each.given():
            raise CallbackError(f"{place}: @when without a filter; {words.hint('', takes)}")
        for name, value in each.given().items():
            require_value(place, name, value)
            if name not in takes:
                raise CallbackError(f"{place}: {name!r} means nothing for this event; it takes {words.several(takes)}")
            every = every or name.startswith("every")
    if every and any(each.first for each in filters(function)):
        raise CallbackError(f"{place}: 'first' is one time in a run; leave out every and every_epoch")


def require_value(place: str, name: str, value: Any) -> None:
    """Raise CallbackError unless the value can be one of this filter."""
    if name in ("first", "main"):
        if value is not True:
            raise CallbackError(f"{place}: {name} is True or left out, got {value!r}")
    elif type(value) is not int or value < 1:
        raise CallbackError(f"{place}: {name} is an integer of 1 or more, got {value!r}")


def gated(event: str, function: Callable[..., None]) -> Callable[..., None] | None:
    """The function to call; None if it is for the main process and this is another."""
    given = filters(function)
    if any(each.main for each in given) and not main():
        return None
    if any(each.first for each in given):
        return once(function, FIRST.get(event, step_one))
    every, epochs = (math.lcm(*(getattr(each, name) or 1 for each in given)) for name in ("every", "every_epoch"))
    return function if every == epochs == 1 else repeated(function, every, epochs)


def repeated(function: Callable[..., None], every: int, epochs: int) -> Callable[..., None]:
    """A function of the state that is called at multiples of both."""

    @wraps(function)
    def call(state: State) -> None:
        if not state.step % every and not state.epoch % epochs:
            function(state=state)

    return call


def once(function: Callable[..., None], first: Callable[[State], bool]) -> Callable[..., None]:
    """A function of the state that is called where `first` says so."""

    @wraps(function)
    def call(state: State) -> None:
        if first(state):
            function(state=state)

    return call


def step_one(state: State) -> bool:
    """Whether this is the first step."""
    return state.step == 1


def unmade(state: State) -> bool:
    """Whether no step was made."""
    return state.step == 0


def epoch_one(state: State) -> bool:
    """Whether this is the first epoch."""
    return state.epoch == 1


def unevaluated(state: State) -> bool:
    """Whether no evaluation was over before this one."""
    return state.last_eval_step is None


FIRST: dict[str, Callable[[State], bool]] = {
    "run_start": unmade,
    **dict.fromkeys(("epoch_start", "epoch_end"), epoch_one),
    **dict.fromkeys(("eval_start", "eval_batch_end", "eval_end"), unevaluated),
}
"""What makes an event the first of the run; `step_one` for all others."""


def main() -> bool:
    """Whether this is the process that speaks for all: rank 0, or the only one."""
    alone = not (distributed.is_available() and distributed.is_initialized())
    return alone or distributed.get_rank() == 0
