"""Where modules and parameters are in a model: all their names, and who shares them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from torch import nn

from hookbrew.errors import SelectorError, SurgeryError
from hookbrew.surgery.carry import Heir
from hookbrew.surgery.change import Family
from hookbrew.taps import modules, sharded, tapped
from hookbrew.taps.walk import Found, place
from hookbrew.words import several

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class Owner(NamedTuple):
    """A module that has a parameter under a name of its own."""

    module: nn.Module
    name: str
    path: str
    """From the model."""


def bare(model: nn.Module) -> None:
    """Raise SurgeryError for a model that is wrapped, or has taps open."""
    wrapped = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    for path, module in model.named_modules():
        if isinstance(module, wrapped):
            raise SurgeryError(
                f"{place(path)} is a {type(module).__name__}, which has counted its parameters; edit the model inside"
                " before it is wrapped"
            )
        if "_orig_mod" in module._modules:
            raise SurgeryError(f"{place(path)} was compiled; edit the model before torch.compile, or its _orig_mod")
    if sharded(model) or any("FullyShardedDataParallel" in type(module).__name__ for module in model.modules()):
        raise SurgeryError("the model is sharded (FSDP); edit it before it is sharded")
    if found := tapped(model):
        raise SurgeryError(f"taps are open on {several(map(repr, found), most=3)}; leave their `with` block first")


def found(model: nn.Module, selector: str, *, every: bool = False) -> Found:
    """The modules that a selector names, each once, under the first of its paths; SurgeryError says what is near.

    every: under all the paths that the selector names.
    """
    try:
        matched = modules(model, selector)
    except SelectorError as error:
        raise SurgeryError(str(error)) from None
    if every:
        return matched
    once: dict[int, str] = {}
    for path, module in matched.items():
        once.setdefault(id(module), path)
    return {path: matched[path] for path in once.values()}


def apart(selector: str, chosen: Found) -> None:
    """Raise SurgeryError if one of the modules is inside another."""
    for path, module in chosen.items():
        for other, inner in chosen.items():
            if inner is not module and any(part is inner for part in module.modules()):
                raise SurgeryError(f"selector '{selector}': '{other}' is inside '{path}'; edit one after the other")


def paths(model: nn.Module, chosen: Collection[nn.Module]) -> list[str]:
    """All paths that lead to some modules, aliases included, in the model's own order."""
    ids = {id(module) for module in chosen}
    return [path for path, module in model.named_modules(remove_duplicate=False) if id(module) in ids]


def families(model: nn.Module, heirs: dict[int, tuple[nn.Module, nn.Module]]) -> list[Family]:
    """The families that change when modules, by the id of the old one, are replaced wherever they are."""
    changes = []
    for path, parent in model.named_modules():
        children = tuple(parent._modules.items())
        if any(id(child) in heirs for _, child in children):
            after = tuple((name, heirs[id(child)][1] if id(child) in heirs else child) for name, child in children)
            mine = {id(child): Heir.of(*heirs[id(child)]) for _, child in children if id(child) in heirs}
            changes.append(Family(parent, path, children, after, tuple(mine.values())))
    return changes


def unhooked(path: str, module: nn.Module, stays: Collection[int]) -> None:
    """Raise SurgeryError if hooks of somebody's would go with a module; stays: the ids of what keeps its hooks.

    Hooks that torch's own functions put there, as weight_norm does, are part of the module.
    """
    for inside, inner in module.named_modules():
        if id(inner) in stays:
            continue
        hooks = [hook for kind in HOOKS for hook in getattr(inner, kind).values()]
        lost = [hook for hook in hooks if not home_made(hook)]
        if lost:
            where = f"'{path}.{inside}'" if inside else f"'{path}'"
            raise SurgeryError(
                f"{where} has {len(lost)} hook(s), which would never fire again: {several(map(named, lost), most=2)};"
                " remove them first, or wrap the module"
            )


def home_made(hook: object) -> bool:
    """Whether a hook is torch's own."""
    return (getattr(hook, "__module__", None) or "").startswith("torch.nn.")


def named(hook: object) -> str:
    """A hook in a sentence."""
    return str(getattr(hook, "__qualname__", type(hook).__qualname__))


def owners(modules: Iterable[tuple[str, nn.Module]], parameter: nn.Parameter) -> Iterator[Owner]:
    """Who has a parameter, among modules with their paths."""
    for path, module in modules:
        for name, own in module._parameters.items():
            if own is parameter:
                yield Owner(module, name, f"{path}.{name}" if path else name)


def without(model: nn.Module, gone: Collection[nn.Module]) -> list[tuple[str, nn.Module]]:
    """The modules that can be reached without passing one that goes, each once, with their paths."""
    lost = {id(module) for module in gone}
    seen: dict[int, tuple[str, nn.Module]] = {}

    def walk(path: str, module: nn.Module) -> None:
        if id(module) in lost or id(module) in seen:
            return
        seen[id(module)] = path, module
        for name, child in module._modules.items():
            if child is not None:
                walk(f"{path}.{name}" if path else name, child)

    walk("", model)
    return list(seen.values())
