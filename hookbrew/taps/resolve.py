"""From a selector to the modules of one model, with every mistake found before a forward runs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import attrs
import torch
from torch import nn

from hookbrew.errors import SelectorError
from hookbrew.taps.attention import ATTENTION
from hookbrew.taps.selector import Range, Segment, Selector, chosen
from hookbrew.taps.walk import Found, Walk, join, numbered, place


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own model inside DistributedDataParallel and torch.compile.

    SelectorError for DataParallel, whose replicas share one set of hooks, and for ScriptModule, which has none.
    """
    while True:
        if isinstance(model, nn.DataParallel):
            raise SelectorError(
                "DataParallel runs replicas on several threads, and a tap would see one of them;"
                " use DistributedDataParallel, or tap the model inside"
            )
        if isinstance(model, torch.jit.ScriptModule):
            raise SelectorError("a ScriptModule runs without Python hooks; tap the model that it was made from")
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def matched(model: nn.Module, selector: Selector) -> Found:
    """The modules of an unwrapped model at a selector's path, each alternative of its braces after the other.

    Each has to match something, so that no part of a selector is dead.
    """
    found: Found = {}
    for path in itertools.product(*map(alternatives, selector.path)):
        found |= Walk(model, selector).down(path)
    return found


def resolve(model: nn.Module, selector: Selector) -> Found:
    """The modules of an unwrapped model that a selector names, in the model's own order; at least one.

    SelectorError says where the path stopped and what is near; it refuses modules that are never called.
    """
    found = matched(model, selector)
    for name, module in found.items():
        callable_or_fail(selector, name, module)
        if selector.port in ATTENTION:
            attention_or_fail(selector, name, module)
    if len(found) == 1:
        return found
    ranks = {name: rank for rank, (name, _) in enumerate(model.named_modules(remove_duplicate=False))}
    return dict(sorted(found.items(), key=lambda item: ranks[item[0]]))


def submodule(model: nn.Module, path: str) -> nn.Module:
    """The module at a path that was found before; SelectorError if it was found in another model."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise SelectorError(f"the layout is of another model: {type(model).__name__} has no '{path}'") from None


def unchanged(model: nn.Module, found: Found) -> None:
    """SelectorError unless the modules that were found are still at their paths."""
    now = dict(model.named_modules(remove_duplicate=False))
    for path, module in found.items():
        if now.get(path) is not module:
            raise SelectorError(f"{place(path)} of the model was replaced after these taps were made; make them anew")


def alternatives(segment: Segment) -> Iterator[Segment]:
    """The segment once for each choice that its braces give."""
    parts = [part[1:-1].split(",") if part[:1] == "{" else [part] for part in re.split(r"(\{[^{}]*\})", segment.glob)]
    for choice in itertools.product(*parts):
        yield attrs.evolve(segment, glob="".join(choice))


def callable_or_fail(selector: Selector, name: str, module: nn.Module) -> None:
    """Refuse what no hook can see: containers, which nobody calls, and compiled code."""
    what = f"selector '{selector}': {place(name)} is a {type(module).__name__}"
    if isinstance(module, torch.jit.ScriptModule):
        raise SelectorError(f"{what}, which runs without Python hooks")
    if getattr(module.forward, "__func__", None) is not nn.Module.forward:
        return
    if not module._modules:
        raise SelectorError(f"{what}, which is never called")
    path = (*selector.path, Segment("*"))
    if selector.path and numbered(module):
        path = (*selector.path[:-1], attrs.evolve(last := selector.path[-1], indices=(*last.indices, Range())))
    raise SelectorError(f"{what}, which is never called; write '{attrs.evolve(selector, path=path)}'")


def attention_or_fail(selector: Selector, name: str, module: nn.Module) -> None:
    """Refuse picks of an attention, and modules around torch's own, whose kernel is closed to those outside."""
    if selector.picks:
        picks = chosen(selector.picks)
        raise SelectorError(f"selector '{selector}': ':{selector.port}' is one tensor; drop the '{picks}'")
    inside = [path for path, inner in module.named_modules() if path and isinstance(inner, nn.MultiheadAttention)]
    if inside:
        raise SelectorError(
            f"selector '{selector}': {place(name)} is a {type(module).__name__} around torch's MultiheadAttention;"
            f" write '{join(name, inside[0])}:{selector.port}'"
        )
