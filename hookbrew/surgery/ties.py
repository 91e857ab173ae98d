"""Weights that several modules share: who shared one with the old module shares it with the new."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
from torch import nn

from hookbrew.errors import SurgeryError
from hookbrew.surgery.change import Weight
from hookbrew.surgery.places import Owner, owners, without


@attrs.frozen(eq=False)
class Pair:
    """A module that goes and the one that comes."""

    path: str
    old: nn.Module
    new: nn.Module

    def holds(self, parameter: nn.Parameter) -> bool:
        """Whether the new module has kept a parameter."""
        return any(own is parameter for own in self.new.parameters())

    def names(self, parameter: nn.Parameter) -> list[str]:
        """What the old module called a parameter."""
        return [name for name, own in self.old.named_parameters(remove_duplicate=False) if own is parameter]


def retied(model: nn.Module, pairs: list[Pair]) -> list[Weight]:
    """The changes that tie again what the old modules shared with each other, or with the rest of the model.

    The new weight goes to all of them, as a user who swaps an embedding wants its values in the head too; a wrapper
    that holds the old one keeps it. SurgeryError where the new module has no weight of that name and shape.
    """
    rest = without(model, [pair.old for pair in pairs])
    changes: list[Weight] = []
    for parameter, sharing in shared(pairs).items():
        outside = list(owners(rest, parameter))
        if len(sharing) + bool(outside) < 2:
            continue
        target = parameter if any(pair.holds(parameter) for pair in sharing) else None
        for pair in sharing:
            if pair.holds(parameter):
                continue
            for owner in heirs(pair, parameter, outside, sharing):
                mine = owner.module._parameters[owner.name]
                assert mine is not None
                target = mine if target is None else target
                if mine is not target:
                    changes.append(Weight(owner.module, owner.name, owner.path, mine, target))
        assert target is not None
        if target is not parameter:
            changes += [Weight(owner.module, owner.name, owner.path, parameter, target) for owner in outside]
    return changes


def shared(pairs: list[Pair]) -> dict[nn.Parameter, list[Pair]]:
    """Each parameter of the old modules, and which of them have it."""
    found: dict[nn.Parameter, list[Pair]] = {}
    for pair in pairs:
        for parameter in pair.old.parameters():
            found.setdefault(parameter, []).append(pair)
    return found


def heirs(pair: Pair, parameter: nn.Parameter, outside: list[Owner], sharing: list[Pair]) -> Iterator[Owner]:
    """Where a new module has what its old one shared; SurgeryError if it has nothing that could be shared."""
    inside = dict(pair.new.named_modules())
    fitting = []
    for name in pair.names(parameter):
        path, _, last = name.rpartition(".")
        mine = inside[path]._parameters.get(last) if path in inside else None
        if mine is not None and mine.shape == parameter.shape:
            fitting.append(Owner(inside[path], last, f"{pair.path}.{name}"))
    if not fitting:
        name = pair.names(parameter)[0]
        other = outside[0].path if outside else next(p.path for p in sharing if p is not pair)
        raise SurgeryError(
            f"'{pair.path}.{name}' {tuple(parameter.shape)} is tied to '{other}', and the new {type(pair.new).__name__}"
            f" has no '{name}' of that shape; give it one, wrap the old module, or untie=True leaves '{other}' alone"
        )
    yield from fitting
