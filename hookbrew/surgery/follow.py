"""The optimizer follows: parameters that left the model leave it with their state, and new ones come in their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from torch import Tensor, nn
from torch.optim import Optimizer

Named = dict[str, nn.Parameter]
"""Parameters by all their names in the model."""


def named(model: nn.Module) -> Named:
    """The parameters of a model by all their names."""
    return dict(model.named_parameters(remove_duplicate=False))


@attrs.frozen(eq=False)
class Group:
    """What one group of an optimizer holds."""

    params: tuple[nn.Parameter, ...]
    names: tuple[str, ...] | None
    """Where the optimizer was given names."""

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> Group:
        """As it is now."""
        return cls(tuple(group["params"]), tuple(group["param_names"]) if "param_names" in group else None)

    def same(self, group: Mapping[str, Any]) -> bool:
        """Whether a group holds these, and in this order."""
        return [*map(id, self.params)] == [*map(id, group["params"])]

    def into(self, group: dict[str, Any]) -> None:
        """Make a group hold these: the same lists, with other things in them."""
        group["params"][:] = self.params
        if self.names is not None:
            group["param_names"][:] = self.names


@attrs.define(eq=False)
class Follow:
    """One change of an optimizer."""

    optimizer: Optimizer
    before: tuple[Group, ...]
    after: tuple[Group, ...]
    keys: tuple[Tensor, ...] = ()
    """Who had a state, in order."""
    state: dict[Tensor, Any] = attrs.field(factory=dict)
    """The state of those that left."""
    forgotten: frozenset[Tensor] = frozenset()
    """Those that stay and lose their state."""

    def do(self) -> None:
        """Other groups, and no state of those that left."""
        states = self.optimizer.state
        self.keys = tuple(states)
        left: set[Tensor] = {*self.forgotten, *held(self.before)} - ({*held(self.after)} - self.forgotten)
        self.state = {parameter: states.pop(parameter) for parameter in self.keys if parameter in left}
        for group, now in zip(self.optimizer.param_groups, self.after, strict=True):
            now.into(group)

    def undo(self) -> None:
        """The old groups and states, in the old order; groups that were added since stay."""
        for group, then in zip(self.optimizer.param_groups, self.before, strict=False):
            then.into(group)
        states = self.optimizer.state
        for parameter in {*self.forgotten, *held(self.after)} - ({*held(self.before)} - self.forgotten):
            states.pop(parameter, None)
        now: dict[Tensor, Any] = {**states, **self.state}
        order = [*(key for key in self.keys if key in now), *(key for key in now if key not in {*self.keys})]
        states.clear()
        states.update({key: now[key] for key in order})

    def broken(self) -> str | None:
        """Whether a group has lost or gained parameters, or is gone."""
        groups = self.optimizer.param_groups
        if len(groups) >= len(self.after) and all(
            then.same(group) for then, group in zip(self.after, groups, strict=False)
        ):
            return None
        return "the optimizer's groups were changed since by somebody else"


def held(groups: tuple[Group, ...]) -> list[Tensor]:
    """The parameters in some groups."""
    return [parameter for group in groups for parameter in group.params]


def follow(optimizer: Optimizer, before: Named, after: Named, forgotten: frozenset[Tensor]) -> Follow | None:
    """How an optimizer follows from one set of the model's parameters to another; None if it has nothing to do.

    A new parameter takes the place of the one that had its name. One without such a forebear joins the group of its
    nearest neighbour by name, at the end. forgotten: parameters that stay, with new values: their state goes.
    """
    then = tuple(map(Group.of, optimizer.param_groups))
    dead, new = {*before.values()} - {*after.values()}, {*after.values()} - {*before.values()}
    where: dict[Tensor, int] = {parameter: number for number, group in enumerate(then) for parameter in group.params}
    heirs: dict[nn.Parameter, nn.Parameter] = {}
    for name, parameter in after.items():
        forebear = before.get(name)
        if parameter in new and forebear in dead and forebear in where:
            heirs.setdefault(forebear, parameter)
    placed: set[Tensor] = {*where, *heirs.values()}
    joining: dict[int, dict[nn.Parameter, str]] = {}
    for name, parameter in after.items():
        if parameter in new and parameter not in placed and parameter.is_floating_point():
            joining.setdefault(nearest(name, before, where), {})[parameter] = name
            placed.add(parameter)
    names = {parameter: name for name, parameter in reversed([*after.items()])}
    now = tuple(renewed(group, dead, heirs, joining.get(number, {}), names) for number, group in enumerate(then))
    forgotten = forgotten & {*where}
    moved = any([*map(id, old.params)] != [*map(id, new.params)] for old, new in zip(then, now, strict=True))
    return Follow(optimizer, then, now, forgotten=forgotten) if forgotten or moved else None


def renewed(
    group: Group,
    dead: set[nn.Parameter],
    heirs: dict[nn.Parameter, nn.Parameter],
    joining: dict[nn.Parameter, str],
    names: dict[nn.Parameter, str],
) -> Group:
    """A group without the dead, with their heirs in their places and those that join at the end."""
    known = group.names or ("",) * len(group.params)
    rows = [
        (heirs.get(parameter, parameter), names[heirs[parameter]] if parameter in heirs else name)
        for parameter, name in zip(group.params, known, strict=True)
        if parameter not in dead or parameter in heirs
    ]
    rows += joining.items()
    return Group(tuple(p for p, _ in rows), None if group.names is None else tuple(name for _, name in rows))


def nearest(name: str, before: Named, where: Mapping[Tensor, int]) -> int:
    """The number of the group in which the nearest neighbour by name was; the first if it has none."""
    parts = name.split(".")
    for end in range(len(parts), -1, -1):
        prefix = ".".join(parts[:end])
        for other, parameter in before.items():
            if parameter in where and (other == prefix or not prefix or other.startswith(f"{prefix}.")):
                return where[parameter]
    return 0
