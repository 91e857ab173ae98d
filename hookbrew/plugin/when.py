"""Filters on the events of a callback: which steps, which epochs, which process.

    from hookbrew.plugin import when

    class Histogram:
        @when(every=100, main=True)
        def step_end(self, state): ...

They are checked when the callback is attached, where the name of its event is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import attrs

F = TypeVar("F", bound=Callable[..., Any])
MARK = "hookbrew_when"
"""The attribute of a function that holds its filters."""


@attrs.frozen(kw_only=True)
class When:
    """The filters of one decorator, as they were given."""

    every: Any = None
    every_epoch: Any = None
    first: Any = False
    main: Any = False

    def given(self) -> dict[str, Any]:
        """The filters that were given, by name."""
        return {
            field.name: value for field in attrs.fields(When) if (value := getattr(self, field.name)) != field.default
        }


def when(
    *, every: int | None = None, every_epoch: int | None = None, first: bool = False, main: bool = False
) -> Callable[[F], F]:
    """Call a method at some of its events only; several filters must all hold, those of several decorators too.

    every: at steps that are multiples of this. every_epoch: in epochs that are.
    first: the first time in the whole run, and not again when it is resumed. It is read from the state:
    `run_start` before any step, an event of epochs in epoch 1, an event of evaluations in the first one, and
    every other in step 1 (each batch of it, for an event of batches).
    main: in one process only: rank 0, or the only one.

    Nothing is remembered between calls, so a run that is resumed calls at the same steps as one that was not.
    """
    made = When(every=every, every_epoch=every_epoch, first=first, main=main)

    def mark(function: F) -> F:
        setattr(function, MARK, (*filters(function), made))
        return function

    return mark


def filters(function: object) -> tuple[When, ...]:
    """The filters of a method, one for each decorator; none if it has none."""
    found: tuple[When, ...] = getattr(function, MARK, ())
    return found
