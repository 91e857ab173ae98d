"""The way down a model along a path, and the sentences for where it ends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import translate

import attrs
from torch import nn

from hookbrew.errors import SelectorError
from hookbrew.taps.selector import ALIASES, Index, Range, Segment, Selector, spelled
from hookbrew.words import nearest, several

Found = dict[str, nn.Module]
"""Modules by their path; the model itself has the path ''."""


def children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The children with all their names: named_children() hides a module that is there twice."""
    return ((name, child) for name, child in module._modules.items() if child is not None)


def numbered(module: nn.Module) -> bool:
    """Whether all children have numbers for names."""
    return bool(module._modules) and all(name.isdigit() for name in module._modules)


def join(path: str, name: str) -> str:
    """The path of a child."""
    return f"{path}.{name}" if path else name


def place(path: str) -> str:
    """A module in a sentence."""
    return f"'{path}'" if path else "the model"


@attrs.frozen
class Walk:
    """The way from the model down a path, one segment at a time, and the sentences for where it ends."""

    model: nn.Module
    selector: Selector

    def down(self, path: tuple[Segment, ...]) -> Found:
        """All modules at the end of a path without braces; SelectorError if there are none."""
        here: Found = {"": self.model}
        for step, segment in enumerate(path):
            below = named(here, segment.glob, last=step == len(path) - 1)
            if not below:
                raise SelectorError(self.stopped(path, step, here))
            here = self.at(below, segment)
        return here

    def at(self, here: Found, segment: Segment) -> Found:
        """The modules that the indices of a segment take out of containers."""
        for index in segment.indices:
            containers = {path: module for path, module in here.items() if numbered(module)}
            if not containers:
                path, module = next(iter(here.items()))
                raise SelectorError(
                    f"selector '{self.selector}': [{spelled(index)}] needs a container with numbered children;"
                    f" {place(path)} is a {type(module).__name__} with {several(module._modules) or 'no children'}"
                )
            here = {
                join(path, name): child
                for path, module in containers.items()
                for name, child in taken(f"selector '{self.selector}'", path, module, index)
            }
        return here

    def stopped(self, path: tuple[Segment, ...], step: int, here: Found) -> str:
        """Why nothing matched: a middle or a beginning that is missing, one that is too much, or a wrong name."""
        text = f"selector '{self.selector}' matches no module of {type(self.model).__name__}"
        start = step
        while start and path[start - 1] == Segment("*"):
            start -= 1
        deep = Segment("**")
        if ends := self.guess((*path[:start], deep, *path[step:])):
            write = attrs.evolve(self.selector, path=(*self.selector.path[:start], deep, *self.selector.path[step:]))
            return (
                f"{text}: {len(ends)} module(s) end like that, e.g. '{next(iter(ends))}':"
                f" write '{write}' or the full path."
            )
        if step == 0 and path[1:] and self.guess(path[1:]):
            write = attrs.evolve(self.selector, path=self.selector.path[1:])
            return f"{text}: paths start inside the model; write '{write}'."
        return f"{text}. {stop(here, path[step].glob)}"

    def guess(self, path: tuple[Segment, ...]) -> Found:
        """What another path would match; nothing if it fails."""
        here: Found = {"": self.model}
        for step, segment in enumerate(path):
            here = named(here, segment.glob, last=step == len(path) - 1)
            try:
                here = self.at(here, segment) if here else {}
            except SelectorError:
                return {}
        return here


def named(here: Found, glob: str, *, last: bool) -> Found:
    """The children whose names match; for `**` all modules below, and unless it comes last also these."""
    if glob == "**":
        return {
            join(path, name) if name else path: module
            for path, parent in here.items()
            for name, module in parent.named_modules(remove_duplicate=False)
            if name or not last
        }
    # fnmatch's own brackets cannot occur: the grammar keeps them out of a glob.
    pattern = re.compile(translate(glob))
    return {
        join(path, name): module
        for path, parent in here.items()
        for name, module in children(parent)
        if pattern.match(name)
    }


def stop(here: Found, glob: str) -> str:
    """The sentence about the place where a path stopped, and the names that are there."""
    names = sorted({name for module in here.values() for name, _ in children(module)})
    stopped = f"Stopped at {place(next(iter(here)))}"
    if len(here) > 1:
        stopped += f" and {len(here) - 1} more module(s)"
    near = None if set(glob) & set("*?") else nearest(glob, [*names, *ALIASES])
    known = f"did you mean '{near}'?" if near else f"one of: {several(names)}" if names else "there are none"
    if near in ALIASES and near not in names:
        known = f"did you mean the alias '{near}[i]', with an index?"
    return f"{stopped}: no child '{glob}'; {known}"


def taken(text: str, path: str, module: nn.Module, index: Index) -> list[tuple[str, nn.Module]]:
    """The children of a container at an index; SelectorError if it is out of range or out of order."""
    inside = list(children(module))
    has = f"{place(path)} has {len(inside)} children (0..{len(inside) - 1})"
    return [inside[number] for number in positions(text, has, len(inside), index)]


def positions(text: str, has: str, size: int, index: Index) -> list[int]:
    """The positions that an index means among `size`, rising; SelectorError with what there is."""
    if isinstance(index, Range):
        if (index.step or 1) < 0:
            raise SelectorError(f"{text}: index [{index}] goes backwards, but matches come in the model's own order")
        if not (found := list(range(size))[index.slice()]):
            raise SelectorError(f"{text}: index [{index}] selects nothing: {has}")
        return found
    wanted = index if isinstance(index, tuple) else (index,)
    if outside := [number for number in wanted if not -size <= number < size]:
        raise SelectorError(f"{text}: index [{outside[0]}] out of range: {has}")
    order = [number % size for number in wanted]
    if order != sorted(set(order)):
        write = ",".join(map(str, sorted(set(order))))
        raise SelectorError(
            f"{text}: index [{spelled(index)}] is out of order, but matches come in the model's own order;"
            f" write [{write}]"
        )
    return order
