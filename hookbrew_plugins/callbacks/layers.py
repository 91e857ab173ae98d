"""Layers of a student beside those of its teacher: which belong together, and the hidden states that they are given."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
from torch import Tensor, nn

from hookbrew.errors import CallbackError, ConfigError, Problem
from hookbrew.loop import State
from hookbrew.taps import modules, sharded, unwrap

Given = tuple[tuple[Any, ...], dict[str, Any]]
"""What a module is called with."""


@attrs.frozen(eq=False)
class Layer:
    """A layer of one of the models."""

    path: str
    module: nn.Module


@attrs.frozen(eq=False)
class Pair:
    """A layer of the student, and those of the teacher in whose place it stands."""

    student: Layer
    teacher: tuple[Layer, ...]


def paired(who: str, state: State, student: str, teacher: str) -> list[Pair]:
    """The student's layers, each with as many of the teacher's, in order.

    Raises ConfigError where they cannot be shared out or the models cannot be run in part, and SelectorError.
    """
    if state.teacher is None:
        raise mistake(who, "it needs the layers of a teacher, and there is none: add a [teacher] table")
    for name, model in (("student", state.student), ("teacher", state.teacher)):
        require_open(who, name, unwrap(model))
    ours, theirs = layers(who, state.student, student), layers(who, state.teacher, teacher)
    each, rest = divmod(len(theirs), len(ours))
    if rest or not each:
        message = f"the student has {len(ours)} layers and the teacher {len(theirs)}; expected as many, or a multiple"
        raise mistake(who, message)
    return [Pair(layer, tuple(theirs[i * each : (i + 1) * each])) for i, layer in enumerate(ours)]


def layers(who: str, model: nn.Module, text: str) -> list[Layer]:
    """The layers that a selector names; raises ConfigError for one module at several paths, as where it is shared."""
    found = [Layer(path, module) for path, module in modules(model, text).items()]
    if len({layer.module for layer in found}) < len(found):
        raise mistake(who, f"'{text}' names one module several times, and each layer is to be one of its own")
    return found


def require_open(who: str, name: str, model: nn.Module) -> None:
    """Raise ConfigError for a model whose layers cannot be run one by one, with changes between them."""
    if sharded(model):
        raise mistake(who, f"it runs layers of both models in one process, and the {name} is sharded over several")
    if any(module._compiled_call_impl is not None for module in model.modules()):
        raise mistake(
            who, f"what layers run changes with the step, and the {name} is compiled; leave train.compile out"
        )


def mistake(who: str, message: str) -> ConfigError:
    """What is wrong with the options of a callback beside these models."""
    return ConfigError([Problem(f"callback {who!r}", message)])


def hidden(layer: Layer, given: Given) -> tuple[str | None, Tensor]:
    """The hidden states that a layer is called with: the first argument; and its name, None for a positional one.

    Raises CallbackError where that is no tensor.
    """
    args, kwargs = given
    name: str | None = None
    if args:
        found = args[0]
    else:
        names = inspect.signature(layer.module.forward).parameters
        name = next((name for name in names if name in kwargs), next(iter(kwargs), None))
        found = None if name is None else kwargs[name]
    if not isinstance(found, Tensor):
        raise CallbackError(
            f"layer '{layer.path}' is called with a {type(found).__name__} first; expected hidden states"
        )
    return name, found


def replaced(given: Given, name: str | None, tensor: Tensor) -> Given:
    """The same call with other hidden states."""
    args, kwargs = given
    return ((tensor, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: tensor})


def apart(given: Given) -> Given:
    """The same call without the keys and values that another model's layers have kept for later tokens.

    Known by the name of their class, for that is of transformers, which may not be there.
    """
    args, kwargs = given
    return tuple(uncached(value) for value in args), {name: uncached(value) for name, value in kwargs.items()}


def uncached(value: Any) -> Any:
    """None for a cache, and any other value as it is."""
    return None if any(cls.__name__ == "Cache" for cls in type(value).__mro__) else value


def namesakes(model: nn.Module, name: str) -> Iterator[nn.Parameter]:
    """The parameters of a model that are called so, in it or in a model that it holds."""
    found: Mapping[str, nn.Parameter] = dict(model.named_parameters())
    yield from (p for known, p in found.items() if known == name or known.endswith(f".{name}"))
