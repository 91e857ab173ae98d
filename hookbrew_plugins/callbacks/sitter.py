"""The models of which maps are drawn: they run once more, on what they were last called with."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from hookbrew.drawing import Side
from hookbrew.errors import CallbackError, SelectorError
from hookbrew.taps import Taps, sharded, unwrap
from hookbrew_plugins.callbacks.attended import attended

log = logging.getLogger("hookbrew")
TAP = "maps"
"""What the one tap is called."""


@attrs.define(eq=False)
class Sitter:
    """One model: what is drawn of it, and what it was last called with."""

    name: str
    model: nn.Module
    layers: Taps
    attention: Taps | None
    given: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def note(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what a forward is given, whatever keys of the batch that is made of."""
        self.given = args, kwargs

    def look(self) -> tuple[list[str], list[Tensor]]:
        """The layers with their paths."""
        assert self.given is not None
        return read(self.layers, *self.given)

    def attend(self, mask: Tensor | None) -> Side | None:
        """The maps of the first sample; None if there are none, which is told once."""
        assert self.given is not None
        if self.attention is None:
            return None
        try:
            paths, found = read(self.attention, *first(self.given))
        except SelectorError as error:
            log.warning("callback 'maps' draws no attention of the %s: %s", self.name, error)
            self.attention = None
            return None
        cut = None if mask is None else mask[:1]
        return Side(
            self.name, [path.removesuffix(":attn") for path in paths], [attended(one, cut).cpu() for one in found]
        )


def sitting(name: str, model: nn.Module, layers: str, attention: str) -> Sitter:
    """A model with its taps; raises SelectorError for those that cannot be, and CallbackError for a sharded model."""
    inner = unwrap(model)
    if sharded(inner):
        raise CallbackError(f"callback 'maps' runs models in one process, and the {name} is sharded over several")
    try:
        return Sitter(name, model, Taps(inner, {TAP: layers}), Taps(inner, {TAP: attention}) if attention else None)
    except SelectorError as error:
        raise SelectorError(f"callback 'maps', {name}: {error}") from error


def named(teacher: nn.Module, name: str = "teacher") -> Iterator[tuple[str, nn.Module]]:
    """The teachers by name, each once: `teacher`, or `large`; of several tasks `trec/teacher`."""
    if type(teacher) is not nn.ModuleDict:
        yield name, teacher
        return
    seen = set[nn.Module]()
    for key, child in teacher.items():
        for path, model in named(child, key):
            if model not in seen:
                seen.add(model)
                yield path if path == key else f"{short(key)}/{path}", model


def short(name: str) -> str:
    """A teacher's name without what it has in common with those of other tasks."""
    return name.removesuffix("/teacher")


def read(taps: Taps, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[str], list[Tensor]]:
    """One forward: the paths of what is tapped, and the tensors."""
    with taps:
        taps.run(*args, **kwargs)
        found = taps[TAP]
        paths = taps.paths[TAP]
    taps.clear()
    tensors = found if isinstance(found, list) else [found]
    same = len(paths) == len(tensors)  # else some module was called several times
    return (paths if same else [f"{paths[0]} {number}" for number in range(len(tensors))]), tensors


def first(given: Any, size: int | None = None) -> Any:
    """The first sample of what a model is given: of each tensor that is as long as the first of them."""
    if size is None:
        size = next((len(tensor) for tensor in tensors(given)), 0)
    if isinstance(given, Tensor):
        return given[:1] if given.dim() and len(given) == size else given
    if isinstance(given, dict):
        return {key: first(value, size) for key, value in given.items()}
    if type(given) in (list, tuple):
        return type(given)(first(value, size) for value in given)
    return given


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in tuples, lists and mappings that have a first dimension."""
    if isinstance(value, Tensor) and value.dim():
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors(part)


def plain() -> ExitStack:
    """Compiled code runs as the Python that it was made from, with its hooks."""
    stack = ExitStack()
    if "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it takes seconds
        stack.enter_context(torch.compiler.set_stance("force_eager"))
    return stack
