"""Components by name, for Python: what `[[losses]]`, `[[callbacks]]` and `[tasks.NAME]` are in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs
from torch import nn

from hookbrew import words
from hookbrew.config import Component, Loss, Merge
from hookbrew.config.structure import NAME
from hookbrew.errors import ConfigError, Problem
from hookbrew.objective import Made, Names, Teachers


@attrs.frozen
class Request:
    """A component by its registered name, not yet looked up."""

    kind: str
    table: Mapping[str, Any]


def loss(type: str, **table: Any) -> Request:
    """A `[[losses]]` table: student, teacher, projection, weight, mask, labels, name, optimizer, and the loss's own.

    The weight and any number of the loss may be `hb.schedule(...)`, with the `base` that it multiplies.
    """
    if callable(table.get("projection")):
        table["projection"] = projecting(type, table["projection"])
    return Request("losses", {"type": type, **{key: tabled(value) for key, value in table.items()}})


def tabled(value: Any) -> Any:
    """A schedule as the table that a file has in its place; anything else as it is."""
    return dict(value.table) if isinstance(value, Request) and value.kind == "schedules" else value


def projecting(type: str, function: Any) -> Component:
    """The projection of a loss that a function of two widths makes; raises ConfigError for a module made before."""
    if isinstance(function, nn.Module):
        made = function.__class__.__name__
        message = f"expected a function that makes a module of student= and teacher=, the widths; got a {made}"
        raise ConfigError([Problem("projection", message, f"loss {type!r}")])
    return Component(type="callable", options=Made(function, getattr(function, "__name__", repr(function))))


def callback(type: str, **options: Any) -> Request:
    """A `[[callbacks]]` table."""
    return Request("callbacks", {"type": type, **{key: tabled(value) for key, value in options.items()}})


def augment(type: str, **options: Any) -> Request:
    """An `[[augments]]` table."""
    return Request("augments", {"type": type, **options})


def schedule(type: str, **options: Any) -> Request:
    """A schedule by name, for `fit(lr_schedule=...)`; for a loss's weight or number also with its `base`."""
    return Request("schedules", {"type": type, **options})


@attrs.frozen(kw_only=True)
class Task:
    """What one of several tasks of a student learns: `[tasks.NAME]`, and the keys of its data."""

    losses: Sequence[Request | Loss]
    teacher: Teachers = None
    """The model that is imitated, or several by name; None for hard labels alone."""
    merge: Mapping[str, Any] | Merge = attrs.field(factory=Merge)
    """How several teachers become one, as the table `[merge]`."""
    fields: Sequence[str] = ()
    """Names for the parts of batches that are tuples."""
    labels: str | Sequence[str] = "labels"
    mask: str = "attention_mask"
    logits: str | Sequence[str] = "logits"
    """The selector of this task's logits: `heads.trec`."""
    causal: bool | None = None
    classes: int | Literal["tokens"] | None = None
    aligned: bool = False
    index: str = "index"

    @property
    def names(self) -> Names:
        """What the keys of its batches and its logits stand for."""
        return Names(**{field.name: getattr(self, field.name) for field in attrs.fields(Names)})

    @property
    def models(self) -> list[nn.Module]:
        """Its teachers."""
        if self.teacher is None:
            return []
        return [self.teacher] if isinstance(self.teacher, nn.Module) else [*self.teacher.values()]


def require_tasks(tasks: Mapping[str, Task], *, doubled: bool) -> None:
    """Raise ConfigError for what is no task or has no name for one; doubled: whether its keys are given beside it."""
    for name, task in tasks.items():
        if [*tasks] != [""] and not NAME.fullmatch(str(name)):  # the only one needs none
            raise ConfigError([Problem("tasks", f"a task's name has letters, digits, - and _; got {name!r}")])
        if not isinstance(task, Task):
            raise ConfigError([Problem(f"tasks.{name}", f"expected hb.Task(...), got a {type(task).__name__}")])
    if tasks and doubled:
        raise ConfigError([Problem("tasks", "each has its own teacher, losses and keys of data; leave these out")])


def alone(teacher: Teachers, losses: Sequence[Request | Loss], data: Mapping[str, Any]) -> Task:
    """The one task of a distillation that has no others; raises ConfigError for a key that no task has."""
    known = [field.name for field in attrs.fields(Task) if field.name not in ("teacher", "losses")]
    unknown = [key for key in data if key not in known]
    if unknown:
        raise ConfigError([Problem("Distillation", f"there is no {unknown[0]!r}; {words.hint(unknown[0], known)}")])
    return Task(teacher=teacher, losses=losses, **data)
