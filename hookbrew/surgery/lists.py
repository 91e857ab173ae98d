"""Insertion into containers and removal from them: children get new numbers, and keep their order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs
from torch import nn

from hookbrew.errors import SelectorError, SurgeryError
from hookbrew.surgery.change import Children, Family
from hookbrew.taps import modules, parse
from hookbrew.taps.selector import Selector
from hookbrew.taps.walk import join, place

LISTS = (nn.Sequential, nn.ModuleList)


def gap(model: nn.Module, text: str) -> tuple[str, nn.Module, int]:
    """The container, with its path, and the position in it that a path like `net[2]` or `net.2` means.

    SurgeryError for any other container, and for a position that is not there; `net[4]` of 4 is the end.
    """
    try:
        selector = parse(text)
        above, number = cut(selector)
        found = {"": model} if not above.path else modules(model, str(above))
    except SelectorError as error:
        raise SurgeryError(f"insert: {error}") from None
    unique = {id(module): path for path, module in reversed(found.items())}
    if number is None or len(unique) != 1:
        raise SurgeryError(f"insert '{text}': expected the one position where the new module goes, like 'net[2]'")
    path, parent = next((path, found[path]) for path in unique.values())
    if not isinstance(parent, LISTS) or not counted(parent):
        kind = type(parent).__name__
        raise SurgeryError(f"insert '{text}': {place(path)} is a {kind}; expected a Sequential or ModuleList by number")
    size = len(parent._modules)
    if not -size <= number <= size:
        raise SurgeryError(
            f"insert '{text}': {place(path)} has {size} children; expected 0..{size}, {size} for the end"
        )
    return path, parent, number % size if number < 0 else number


def cut(selector: Selector) -> tuple[Selector, int | None]:
    """A selector without its last index, and that; None if it does not end in a number."""
    if not selector.path or selector != Selector(selector.path):
        return Selector(), None
    *above, last = selector.path
    if last.indices:
        number = last.indices[-1]
        rest = attrs.evolve(last, indices=last.indices[:-1])
        return Selector((*above, rest)), number if isinstance(number, int) else None
    return Selector(tuple(above)), int(last.glob) if last.glob.isdigit() else None


def counted(module: nn.Module) -> bool:
    """Whether the children are called 0, 1, 2 and so on; a container without any counts too."""
    return [*module._modules] == [str(number) for number in range(len(module._modules))]


def inserted(path: str, parent: nn.Module, number: int, new: nn.Module) -> Family:
    """The children with one more."""
    before = tuple(parent._modules.items())
    children = [child for _, child in before]
    children.insert(number, new)
    return Family(parent, path, before, tuple((str(place), child) for place, child in enumerate(children)))


def removed(model: nn.Module, matched: Iterable[str]) -> list[Family]:
    """The families without the children at some paths.

    SurgeryError for a child that is no element of a container: the forward of its parent calls it by name.
    """
    gone: dict[nn.Module, tuple[str, set[str]]] = {}
    for path in matched:
        above, _, name = path.rpartition(".")
        parent = model.get_submodule(above)
        if not isinstance(parent, (*LISTS, nn.ModuleDict)):
            raise SurgeryError(
                f"remove '{path}': {place(above)} is a {type(parent).__name__}, which calls it by name; only elements"
                " of a Sequential, ModuleList or ModuleDict can go; swap it for torch.nn.Identity()"
            )
        gone.setdefault(parent, (above, set()))[1].add(name)
    return [without(parent, above, names) for parent, (above, names) in gone.items()]


def without(parent: nn.Module, path: str, names: set[str]) -> Family:
    """The children without some."""
    before = tuple(parent._modules.items())
    rest: Children = tuple((name, child) for name, child in before if name not in names)
    if isinstance(parent, LISTS) and counted(parent):
        rest = tuple((str(number), child) for number, (_, child) in enumerate(rest))
    return Family(parent, path, before, rest)


def staying(model: nn.Module, families: Sequence[Family]) -> set[int]:
    """The ids of the modules in a model that keep at least one of their names when these families change."""
    changed = {id(family.parent): family.after for family in families}
    seen: set[int] = set()
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if id(module) not in seen:
            seen.add(id(module))
            children = changed.get(id(module), tuple(module._modules.items()))
            waiting += [child for _, child in children if child is not None]
    return seen


def joined(path: str, number: int) -> str:
    """The path of a child by number."""
    return join(path, str(number))
