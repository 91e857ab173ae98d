"""A student that is made out of a teacher: `[student]` with `from`, and how its table is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import attrs
from attrs import validators

from hookbrew import words
from hookbrew.options import at_least

CHOICES = ("first", "last", "uniform", "distilbert", "minilm", "best")
"""The choices of layers that have a name; the same as in hookbrew.surgery, which imports torch."""
CHOICE = re.compile(r"([A-Za-z]+):([1-9][0-9]*)")
SOURCE = re.compile(r"(tasks\.[A-Za-z0-9_-]+\.)?(teacher|teachers\.[A-Za-z0-9_-]+)")


def named(_: Any, field: attrs.Attribute[Any], value: str) -> None:
    """Raise ValueError for what is no place of a teacher; a validator of attrs."""
    if not SOURCE.fullmatch(value):
        raise ValueError(f"'{field.name}' is the place of a teacher, 'teacher' or 'teachers.NAME': {value!r}")


def wrong(value: list[int] | str) -> str | None:
    """What is wrong with the layers that are kept of one list; None if nothing is."""
    if isinstance(value, str):
        match = CHOICE.fullmatch(value)
        if match is None:
            return f"{value!r} is no choice of layers; write a list of numbers, or a name with how many: 'uniform:3'"
        known = match[1] in CHOICES
        return None if known else f"no choice of layers is called {match[1]!r}; {words.hint(match[1], CHOICES)}"
    if not value:
        return "names no layer: write one or more"
    twice = [number for place, number in enumerate(value) if number in value[:place]]
    return f"layer {twice[0]} is named twice" if twice else None


@attrs.frozen(kw_only=True)
class Width:
    """`student.width`: how wide the student is; a width that is left out stays."""

    hidden: int | None = at_least(1, None)
    """Features of the hidden states."""
    heads: int | None = at_least(1, None)
    """Heads of attention in each layer."""
    ffn: int | None = at_least(1, None)
    """Neurons between the two linear layers of each layer."""
    by: Literal["slice", "importance"] = "slice"
    """What stays: the first ones, or those that do most on batches of the training data."""


def made(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
    """Raise ValueError for a table that is no factory, and for no ids at all; a validator of attrs."""
    if isinstance(value, Mapping) and not isinstance(value.get("factory"), str):
        raise ValueError(f"'{field.name}' is a list of ids, or a table with a `factory` that gives it")
    if not value:
        raise ValueError(f"'{field.name}' names nothing: write one, or leave this key out")


def ranked(_: Any, field: attrs.Attribute[Any], value: Mapping[str, int]) -> None:
    """Raise ValueError for a rank below 1; a validator of attrs."""
    for selector, rank in value.items():
        if rank < 1:
            raise ValueError(f"'{field.name}' must be >= 1: {selector} is {rank}")


@attrs.frozen(kw_only=True)
class Derived:
    """`[student]` with `from`: a new model made out of a teacher's weights. Without more keys it is a copy."""

    source: str = attrs.field(validator=named, metadata={"key": "from"})
    """Which teacher: `teacher`, `teachers.NAME`, or of a task `tasks.NAME.teacher`."""
    keep: dict[str, list[int] | str] = attrs.field(factory=dict)
    """The layers that stay, by the path of their list: numbers, or a choice that has a name, like "uniform:3"."""
    width: Width | None = None
    """How wide it is; that of the teacher when left out."""
    vocabulary: list[int] | dict[str, Any] | None = attrs.field(default=None, validator=validators.optional(made))
    """The ids that stay, in their new order; or a factory that gives them, or the old ids of each new one."""
    rank: dict[str, int] = attrs.field(factory=dict, validator=ranked)
    """Ranks of linear and embedding layers, which become two by SVD, by their selectors."""
    batches: int = at_least(1, 8)
    """On how many batches of the training data "best" and "importance" are measured."""

    @property
    def measured(self) -> bool:
        """Whether something is chosen by measuring."""
        best = any(isinstance(layers, str) and layers.startswith("best:") for layers in self.keep.values())
        return best or (self.width is not None and self.width.by == "importance")
