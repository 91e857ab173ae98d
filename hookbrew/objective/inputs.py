"""Which keys of a batch go where: into the models, to the losses as labels or mask."""

from __future__ import annotations

import inspect
from collections.abc import Collection

import attrs
from torch import nn

from hookbrew import words
from hookbrew.errors import DataError
from hookbrew.taps import unwrap


@attrs.frozen
class Names:
    """The keys of a batch that have a meaning of their own."""

    labels: str = "labels"
    mask: str = "attention_mask"


def accepted(model: nn.Module, keys: Collection[str], labels: str) -> tuple[str, ...]:
    """The keys of a batch that `model.forward` has parameters for, labels excluded.

    Labels never go into a model: it would compute a loss of its own, which nobody reads. A forward that
    has nothing but `**kwargs` gets every key.

    Raises DataError when a parameter without a default is not in the batch, or no key fits at all.
    """
    keyed = keyword_parameters(model)
    offered = [key for key in keys if key != labels]
    if not keyed:
        return tuple(offered)
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
