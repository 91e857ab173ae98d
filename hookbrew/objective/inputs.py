"""Which keys of a batch go where: into the models, to the losses as labels, mask or index.

A batch may have parts: keys `student.input_ids` go into the student alone, `teacher.input_ids` into every teacher,
`teacher.large.input_ids` into the teacher of that name; all others go into all that take them.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any, Final, Literal

import attrs
from torch import nn

from hookbrew import words
from hookbrew.errors import DataError
from hookbrew.taps import unwrap

TASK = "task"
"""The key under which a batch of several tasks says which one it is of."""
SIDES: Final = ("student", "teacher")
"""Before the first dot of a key: whose alone it is."""


@attrs.frozen
class Names:
    """What the keys of a batch and the logits of a model stand for; as `[data]` of a configuration says it."""

    labels: str | Sequence[str] = "labels"
    """The key of the labels; one for each tensor of logits where there are several."""
    mask: str = "attention_mask"
    logits: str | Sequence[str] = "logits"
    """Selectors of what losses on logits and the evaluation read, if nothing else is said."""
    causal: bool | None = None
    """Whether logits at a position are of the token after it; None refuses to guess for a model that looks like it."""
    classes: int | Literal["tokens"] | None = None
    """How many of the logits are classes, the rest being padding; or each token is one, as where a span starts."""
    aligned: bool = False
    """Whether position i is the same token for student and teacher, where they have tokens of their own."""
    index: str = "index"

    @property
    def kept(self) -> tuple[str, ...]:
        """Keys that never go into a model: from labels it would compute a loss of its own, which nobody reads."""
        return (self.labels,) if isinstance(self.labels, str) else tuple(self.labels)


def parted(batch: Mapping[str, Any], *sides: str) -> dict[str, Any]:
    """The batch as one side sees it: what is common, then its own parts; sides: ("teacher", "large")."""
    for key in batch:
        if key.startswith(SIDES):
            break
    else:  # nearly always, and asked several times a step
        return dict(batch)
    common = {key: value for key, value in batch.items() if key.partition(".")[0] not in SIDES}
    prefix = ""
    for side in sides:
        prefix += f"{side}."
        own = {k.removeprefix(prefix): v for k, v in batch.items() if k.startswith(prefix)}
        common |= {key: value for key, value in own.items() if "." not in key}
    return common


@attrs.define
class Inputs:
    """Which keys of a batch go into which model; the first batch decides, and later ones are held to it."""

    kept: Collection[str]
    """Keys that never go into one."""
    mask: str = "attention_mask"
    keys: dict[str, tuple[str, ...]] = attrs.field(factory=dict)
    """What each model gets, by its name."""
    _spare: dict[str, Set[str]] = attrs.field(factory=dict)
    """Parameters of the models that the first batch had nothing for."""
    _last: dict[str, tuple[Set[str], dict[str, str]]] = attrs.field(factory=dict)
    """The keys of the last batch that was asked for, and under which of them each input was: most have the same."""

    def settle(self, models: Mapping[str, nn.Module], batch: Mapping[str, Any]) -> None:
        """Look at the first batch; raises DataError when a model cannot be called with it."""
        require_sides(models, batch)
        for name, model in models.items():
            part = sided(name, batch)
            require_mask(name, model, batch, self.mask)
            self.keys[name] = accepted(model, part, self.kept)
            self._last.pop(name, None)
            self._spare[name] = keyword_parameters(model).keys() - {*part, *self.kept}

    def of(self, model: str, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a batch that goes into a model; raises DataError when it has other keys than the first one."""
        keys, places = self._last.get(model, (None, {}))
        if keys != batch.keys():
            keys, places = self._last[model] = frozenset(batch), self._places(model, batch)
        return {key: batch[place] for key, place in places.items()}

    def _places(self, model: str, batch: Mapping[str, Any]) -> dict[str, str]:
        """For each input of a model, the key of the batch that it is under; raises DataError as `of` does."""
        part = sided(model, dict(zip(batch, batch, strict=True)))
        who = called(model)
        for key in self.keys[model]:
            if key not in part:
                raise DataError(f"the {who} gets {key!r}, which the first batch had and this one lacks")
        for key in self._spare[model] & part.keys():
            raise DataError(f"the {who} takes {key!r}, which this batch has and the first one lacked")
        return {key: part[key] for key in self.keys[model]}


def called(model: str) -> str:
    """The student or a teacher in a sentence, by its name."""
    return model if model in ("student", "teacher") else f"teacher {model!r}"


def require_sides(models: Mapping[str, nn.Module], batch: Mapping[str, Any]) -> None:
    """Raise DataError for a part of a batch that no model would get: another one's would go into it."""
    teachers = [name for name in models if name != "student"]
    for key in batch:
        side, *inside = key.split(".")
        if side == "teacher" and teachers and len(inside) == 2 and inside[0] not in teachers:
            raise DataError(
                f"the batch has {key!r}, and there is no teacher {inside[0]!r}; {words.hint(inside[0], teachers)}"
            )
        if side in ("student", "teacher") and len(inside) > (1 if side == "student" else 2):
            raise DataError(f"the batch has {key!r}, a table in a table; nothing of it would be used")


def require_mask(name: str, model: nn.Module, batch: Mapping[str, Any], mask: str) -> None:
    """Raise DataError where a model has inputs of its own and takes a mask, which only others have."""
    part, keyed = sided(name, batch), keyword_parameters(model)
    given = {key.rpartition(".")[2] for key in batch if key.partition(".")[0] in ("student", "teacher")}
    if mask in given and mask not in part and mask in keyed:
        raise DataError(
            f"the {called(name)} takes {mask!r}, and the batch has one for others only; give it one too: "
            "ones, if nothing of its input is padding"
        )


def sided(model: str, batch: Mapping[str, Any]) -> dict[str, Any]:
    """What a batch has for the student or a teacher, by its name."""
    return parted(batch, *(("student",) if model == "student" else ("teacher", model)))


def accepted(model: nn.Module, keys: Collection[str], kept: Collection[str]) -> tuple[str, ...]:
    """The keys of a batch that `model.forward` has parameters for, those in `kept` excluded.

    A forward that has nothing but `**kwargs` gets every key.
    Raises DataError when a parameter without a default is not in the batch, or no key fits at all.
    """
    keyed = keyword_parameters(model)
    offered = [key for key in keys if key not in kept]
    if not keyed:
        return tuple(key for key in offered if key != TASK)
    missing = [n for n, p in keyed.items() if p.default is p.empty and n not in offered]
    chosen = tuple(key for key in offered if key in keyed)
    if missing or not chosen:
        lacking = words.several(map(repr, missing)) if missing else "at least one of its parameters"
        near = words.hint(missing[0], offered) if missing else words.hint("", keyed)
        raise DataError(
            f"{type(unwrap(model)).__name__} needs {lacking}, and the batch has {words.several(keys)}; {near}"
            " (name the parts of a batch with data.fields, or rename them in the dataset)"
        )
    return chosen


def keyword_parameters(model: nn.Module) -> dict[str, inspect.Parameter]:
    """The parameters of `model.forward` that can be given by name; wrappers are looked through."""
    parameters = inspect.signature(unwrap(model).forward).parameters
    return {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
