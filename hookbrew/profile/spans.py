"""The parts of a step, told from outside: functions of one loop, its objective and dispatch are wrapped for a while.

Between two events lies one part, or several that are wrapped themselves. Nothing is wrapped where nothing is measured,
so that a training that is not profiled pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

from hookbrew.loop import Batch, Loop, State
from hookbrew.objective import Objective
from hookbrew.profile.ruler import LOOP, Part, Ruler, within

MOVE: Part = ("to the device", "")
COUNTS: Part = ("losses", "counting what is valid")
RECORD: Part = ("row of metrics", "")

AFTER: dict[str, Part] = {
    "step_start": LOOP,
    "batch_ready": LOOP,
    "forward_end": ("losses", "sums and weights"),
    "loss_end": ("backward", ""),
    "backward_end": ("gradients", ""),
    "grads_ready": ("optimizer", ""),
    "optimizer_end": LOOP,
    "step_end": LOOP,
    "log": LOOP,
}
"""What follows an event."""
OPENS = {"eval_start": "evaluation", "checkpoint_saving": "checkpoint"}
CLOSES = {"eval_end": "evaluation", "checkpoint_saved": "checkpoint", "checkpoint_failed": "checkpoint"}
MISSING: Any = object()


@contextmanager
def spanned(loop: Loop, ruler: Ruler) -> Iterator[None]:
    """Inside, the ruler is told of every part of the loop's steps but the data, and outside all is as before."""
    with ExitStack() as stack:
        stack.enter_context(events(loop, ruler))
        stack.enter_context(replaced(loop, "augment", augmented(loop.augment, ruler)))
        stack.enter_context(replaced(loop.objective, "counts", counted(loop.objective.counts, ruler)))
        for task, part in getattr(loop.objective, "parts", {}).items():
            stack.enter_context(computed(part, f"{task}/" if task else "", ruler))
        yield


@contextmanager
def events(loop: Loop, ruler: Ruler) -> Iterator[None]:
    """Each callback is a part, and so is what follows an event."""
    dispatch, opened = loop.dispatch, dict[str, int]()
    fire = dispatch.fire

    def told(event: str, state: State) -> None:
        if event == "log":
            ruler.since(RECORD)
        if event in OPENS:
            opened[OPENS[event]] = ruler.begin((OPENS[event], ""))
        fire(event, state)
        if event in AFTER:
            ruler.become(AFTER[event])
        if CLOSES.get(event) in opened:
            ruler.end(opened.pop(CLOSES[event]))

    own = dict[Callable[..., None], Callable[..., None]]()
    # the entries themselves are replaced: one that raises may leave the table meanwhile, and does not come back
    table = dispatch._table
    for event, entries in table.items():
        timed = [(key, called(function, named(key, event), ruler)) for key, function in entries]
        own |= {new: old for (_, new), (_, old) in zip(timed, entries, strict=True)}
        table[event] = tuple(timed)
    try:
        with replaced(dispatch, "fire", told):
            yield
    finally:
        for event, entries in table.items():
            table[event] = tuple((key, own.get(function, function)) for key, function in entries)


def named(key: str, event: str) -> Part:
    """A callback in one event; those of what is apart from the step belong to that."""
    group = next((g for start, g in GROUPS.items() if event.startswith(start)), "callbacks")
    return group, f"{key.rpartition('#')[0]} {event}"


GROUPS = {
    "eval_": "evaluation",
    "checkpoint_": "checkpoint",
    "epoch_": "epoch",
    **dict.fromkeys(("run_", "resumed", "close"), "run"),
}


def called(function: Callable[..., Any], part: Part, ruler: Ruler) -> Callable[..., Any]:
    """A function that is a part by itself."""

    @wraps(function)
    def call(*given: Any, **options: Any) -> Any:
        with within(ruler, part):
            return function(*given, **options)

    return call


def augmented(augment: Callable[[Batch, int, int], Batch], ruler: Ruler) -> Callable[[Batch, int, int], Batch]:
    """What augments a batch; the loop brings it to the device then."""

    def call(batch: Batch, step: int, position: int) -> Batch:
        with within(ruler, ("augment", "")):
            made = augment(batch, step, position)
        ruler.become(MOVE)
        return made

    return call


def counted(counts: Callable[..., Any], ruler: Ruler) -> Callable[..., Any]:
    """What counts the valid positions of a batch, over all processes then."""

    def call(*given: Any) -> Any:
        ruler.become(COUNTS)
        return counts(*given)

    return call


@contextmanager
def computed(objective: Objective, task: str, ruler: Ruler) -> Iterator[None]:
    """Each forward of a model and each term of the loss is a part, terms that are computed together one; task: what
    their names begin with."""
    view, values = objective._view, objective._values
    run, evaluated, walk = view.run, values.one, values.walk

    def forward(model: str, *given: Any) -> Any:
        with within(ruler, ("models", f"{task}{model}")):
            return run(model, *given)

    def mean(term: Any, *given: Any) -> Any:
        with within(ruler, ("losses", f"{task}{term.name}")):
            return evaluated(term, *given)

    def walked(group: Any, *given: Any) -> Any:
        names = " + ".join(objective.terms[place].name for place in group.parts)
        with within(ruler, ("losses", f"{task}{names}")):
            return walk(group, *given)

    with replaced(view, "run", forward), replaced(values, "one", mean), replaced(values, "walk", walked):
        yield


@contextmanager
def replaced(thing: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of one object is another one inside; one that its class gave is the class's again outside."""
    own = vars(thing).get(name, MISSING) if hasattr(thing, "__dict__") else getattr(thing, name)
    setattr(thing, name, value)
    try:
        yield
    finally:
        if own is MISSING:
            delattr(thing, name)
        else:
            setattr(thing, name, own)
