"""A source: one `[[losses]]` table, built and read off its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal, get_args

import attrs
from torch import Tensor, nn

from hookbrew import words
from hookbrew.config import Loss
from hookbrew.errors import ConfigError, HookbrewError, ObjectiveError, Problem
from hookbrew.objective.attended import ATTENDED
from hookbrew.progress import Scheduled

ROLES = ("student", "teacher", "mask", "labels")
"""What a loss may ask for, by the names of its parameters."""

Counts = Literal["positions", "pairs", "samples"]
COUNTS: Final = get_args(Counts)
"""What a loss may be a mean over, by the class variable `counts` of its options."""


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
    takes: str
    """The kind of tensor it compares: `logits`, `hidden`, a kind of attention (ATTENDED), or a word of its own,
    which asks for no equal shapes."""
    marks: bool
    """Whether a label of -100 takes its row out; a loss that only looks at labels says no."""
    counts: Counts | None
    """What it is a mean over; None where its tensors tell."""
    weight: Scheduled

    @property
    def compares(self) -> bool:
        """Whether it needs a teacher."""
        return "teacher" in self.roles

    def __str__(self) -> str:
        return f"loss {self.name!r} ({self.path})"


def sourced(losses: Sequence[Loss], *, taught: bool) -> tuple[Source, ...]:
    """Build every loss; raises ConfigError with all that is wrong.

    taught: whether there is a teacher.
    """
    sources, problems = [], list[Problem]()
    for index, (table, name) in enumerate(zip(losses, unique(losses), strict=True)):
        path = f"losses[{index}]"
        with collected(problems, path):
            source = build(table, name, path)
            sources.append(source)
            require_sides(source, taught)
    if problems:
        raise ConfigError(problems)
    return tuple(sources)


def build(table: Loss, name: str, path: str) -> Source:
    """The source of one table."""
    function = table.options.build()
    schedule = table.weight.schedule
    counts = getattr(table.options, "counts", None)
    if counts is not None and counts not in COUNTS:
        raise ObjectiveError(f"loss {table.type!r} counts {counts!r}; {words.hint(str(counts), COUNTS)}")
    return Source(
        path=path,
        name=name,
        table=table,
        function=function,
        roles=roles_of(function, table.type),
        takes=getattr(table.options, "takes", "logits"),
        marks=getattr(table.options, "marks", True),
        counts=counts,
        weight=Scheduled(table.weight.base, None if schedule is None else schedule.options.build()),
    )


def require_sides(source: Source, taught: bool) -> None:
    """Raise ObjectiveError when a table lacks a side, or names one that its loss never reads."""
    kind = source.table.type
    if source.compares and not taught:
        raise ObjectiveError(f"loss {kind!r} compares with a teacher, and there is none: add a [teacher] table")
    if source.takes != "logits":
        sides = {"student": source.table.student, "teacher": source.table.teacher if source.compares else ""}
        lacking = [side for side, selector in sides.items() if selector is None]
        if lacking:
            attended = ATTENDED.get(source.takes)
            what, example = (attended.what, attended.selector) if attended else ("hidden tensors", "...")
            keys = " and ".join(f'{side} = "{example}"' for side in lacking)
            raise ObjectiveError(
                f"loss {kind!r} compares {what}: name them with {keys} (`hookbrew taps` lists what there is)"
            )
    if source.takes in ATTENDED and source.table.projection is not None:
        raise ObjectiveError(f"projection: loss {kind!r} compares tokens with tokens, not features; leave this key out")
    if not source.compares:
        for key in ("teacher", "projection"):
            if getattr(source.table, key) is not None:
                raise ObjectiveError(f"{key}: loss {kind!r} reads no teacher; leave this key out")
    if source.table.labels is not None and "labels" not in source.roles:
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
    call = function.forward if isinstance(function, nn.Module) else function
    roles = set()
    for name, parameter in inspect.signature(call).parameters.items():
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


@contextmanager
def collected(problems: list[Problem], path: str) -> Iterator[None]:
    """Keep a user's mistake for later, with its place, so that all are reported together."""
    try:
        yield
    except HookbrewError as error:
        problems.append(Problem(path, str(error)))
