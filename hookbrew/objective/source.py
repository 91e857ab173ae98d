"""A source: one `[[losses]]` table, built and read off its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Final, Literal, get_args

import attrs
from torch import Tensor, nn

from hookbrew import words
from hookbrew.config import Loss, Weight
from hookbrew.errors import ConfigError, HookbrewError, ObjectiveError, Problem
from hookbrew.objective.attended import ATTENDED
from hookbrew.objective.inputs import Names
from hookbrew.objective.sides import Selectors, sided
from hookbrew.progress import Scheduled

ROLES = ("student", "teacher", "mask", "labels", "index")
"""What a loss may ask for, by the names of its parameters."""

Counts = Literal["positions", "pairs", "samples"]
COUNTS: Final = get_args(Counts)
"""What a loss may be a mean over, by the class variable `counts` of its options."""
GRID: Final = 1000
"""At how many points of the training the options that a schedule moves are tried."""


@attrs.frozen(kw_only=True)
class Source:
    """A table of the configuration with its loss; shared by the terms that its selectors expand to."""

    path: str
    """Its place in the configuration: `losses[1]`."""
    name: str
    table: Loss
    function: Callable[..., Tensor]
    roles: frozenset[str]
    """Which of ROLES the function takes."""
    strict: bool
    """Whether its mask may not be left out where it leaves nothing out: its parameter has no default."""
    takes: str
    """The kind of tensor it compares: `logits`, `hidden`, `flow` (two layers of each side), a kind of attention
    (ATTENDED), or a word of its own, which asks for no equal shapes."""
    marks: bool
    """Whether a label of -100 makes the whole position invalid; not so where labels are of several classes each."""
    soft: bool
    """Whether its labels may be soft, (..., C), so that a row of zeros is none."""
    counts: Counts | None
    """What it is a mean over; None where that depends on mask and labels."""
    weight: Scheduled
    selectors: Selectors
    """What it reads of each model, by the model's name: the student's, and those of the teachers it compares with."""
    varying: Mapping[str, Scheduled]
    """The options that a schedule moves."""

    @cached_property
    def teachers(self) -> tuple[str, ...]:
        """The names of the teachers that it compares with."""
        return tuple(name for name in self.selectors if name != "student")

    def values(self, progress: float) -> dict[str, float]:
        """The options that a schedule moves, at this point of the training."""
        return {name: scheduled.at(progress) for name, scheduled in self.varying.items()}

    def at(self, progress: float) -> Any:
        """The options of the loss at this point of the training."""
        return attrs.evolve(self.table.options, **self.values(progress)) if self.varying else self.table.options

    def function_at(self, progress: float) -> Callable[..., Tensor]:
        """The loss at this point of the training."""
        return self.at(progress).build() if self.varying else self.function

    def __str__(self) -> str:
        return f"loss {self.name!r} ({self.path})"


def sourced(losses: Sequence[Loss], teachers: Collection[str], names: Names, at: str = "") -> tuple[Source, ...]:
    """Build every loss; raises ConfigError with all that is wrong.

    teachers: what they are called. at: where the list of tables stands in the configuration, as `tasks.trec.`.
    """
    sources, problems = [], list[Problem]()
    for index, (table, name) in enumerate(zip(losses, unique(losses), strict=True)):
        path = f"{at}losses[{index}]"
        with collected(problems, path):
            sources.append(build(table, name, path, teachers, names))
    if problems:
        raise ConfigError(problems)
    return tuple(sources)


def build(table: Loss, name: str, path: str, teachers: Collection[str], names: Names) -> Source:
    """The source of one table."""
    function = table.options.build()
    counts = getattr(table.options, "counts", None)
    if counts is not None and counts not in COUNTS:
        raise ObjectiveError(f"loss {table.type!r} counts {counts!r}; {words.hint(str(counts), COUNTS)}")
    roles = roles_of(function, table.type)
    takes = getattr(table.options, "takes", "logits")
    require_sides(table, roles, takes, teachers)
    source = Source(
        path=path,
        name=name,
        table=table,
        function=function,
        roles=roles,
        strict=strict(function),
        takes=takes,
        marks=getattr(table.options, "marks", True),
        soft=getattr(table.options, "soft", False),
        counts=counts,
        weight=scheduled(table.weight),
        selectors=sided(table, takes, teachers if "teacher" in roles else (), names),
        varying={option: scheduled(value) for option, value in table.varying.items()},
    )
    require_possible(source)
    return source


def scheduled(weight: Weight) -> Scheduled:
    """A base with its schedule, built."""
    return Scheduled(weight.base, None if weight.schedule is None else weight.schedule.options.build())


def require_possible(source: Source) -> None:
    """Raise ObjectiveError where a schedule moves an option to a value that the loss does not have."""
    if source.varying and isinstance(source.function, nn.Module):
        raise ObjectiveError(
            f"{next(iter(source.varying))}: loss {source.table.type!r} learns or remembers, so its options cannot "
            "change on the way; give a number"
        )
    for step in range(GRID if source.varying else 0):
        try:
            source.at(step / GRID)
        except ValueError as error:
            given = ", ".join(f"{name} {value:g}" for name, value in source.values(step / GRID).items())
            raise ObjectiveError(
                f"after {step / GRID:.1%} of the training the schedule gives {given}: {error.args[0]}"
            ) from error


def require_sides(table: Loss, roles: frozenset[str], takes: str, teachers: Collection[str]) -> None:
    """Raise ObjectiveError when a table lacks a side, or names one that its loss never reads."""
    kind, compares = table.type, "teacher" in roles
    if compares and not teachers:
        raise ObjectiveError(f"loss {kind!r} compares with a teacher, and there is none: add a [teacher] table")
    if takes != "logits":
        sides = {"student": table.student, "teacher": table.teacher if compares else ""}
        lacking = [side for side, selector in sides.items() if selector is None]
        if lacking:
            attended = ATTENDED.get(takes)
            what, example = (attended.what, f'"{attended.selector}"') if attended else ("hidden tensors", '"..."')
            if takes == "flow":
                what, example = "two layers of each side", '["hidden[0]", "hidden[-1]"]'
            keys = " and ".join(f"{side} = {example}" for side in lacking)
            raise ObjectiveError(
                f"loss {kind!r} compares {what}: name them with {keys} (`hookbrew taps` lists what there is)"
            )
    if takes in ATTENDED and table.projection is not None:
        raise ObjectiveError(f"projection: loss {kind!r} compares tokens with tokens, not features; leave this key out")
    if not compares:
        for key in ("teacher", "projection"):
            if getattr(table, key) is not None:
                raise ObjectiveError(f"{key}: loss {kind!r} reads no teacher; leave this key out")
    if table.labels is not None and "labels" not in roles:
        raise ObjectiveError(f"labels: loss {kind!r} reads no labels; leave this key out")


def unique(losses: Sequence[Loss]) -> Iterator[str]:
    """A name for each table: its own, or its type, numbered from the second on."""
    seen = set[str]()
    for table in losses:
        wanted = table.name or table.type
        name = next(n for n in (wanted, *(f"{wanted}_{i}" for i in range(2, len(losses) + 2))) if n not in seen)
        seen.add(name)
        yield name


def roles_of(function: Callable[..., Any], kind: str) -> frozenset[str]:
    """The roles a loss takes, from its signature; a parameter with a default may have any other name."""
    roles = set()
    for name, parameter in parameters(function).items():
        if name in ROLES:
            roles.add(name)
        elif parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        ):
            raise ObjectiveError(
                f"the function of loss {kind!r} asks for {name!r}, which nobody gives; {words.hint(name, ROLES)}"
            )
    if "student" not in roles:
        raise ObjectiveError(f"the function of loss {kind!r} takes no 'student'; {words.hint('', ROLES)}")
    return frozenset(roles)


def parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """What a loss takes, by name."""
    call = function.forward if isinstance(function, nn.Module) else function
    return inspect.signature(call).parameters


def strict(function: Callable[..., Any]) -> bool:
    """Whether a loss wants a mask wherever there is one, for want of a default."""
    mask = parameters(function).get("mask")
    return mask is not None and mask.default is mask.empty


@contextmanager
def collected(problems: list[Problem], path: str) -> Iterator[None]:
    """Keep a user's mistake for later, with its place, so that all are reported together."""
    try:
        yield
    except ConfigError as error:  # it knows its places
        problems += error.problems
    except HookbrewError as error:
        problems.append(Problem(path, str(error)))
