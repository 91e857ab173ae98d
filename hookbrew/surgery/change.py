"""What edits are made of: small changes, each of which knows its way back and whether somebody has been there since."""

from __future__ import annotations

from typing import Protocol

import attrs
from torch import nn

from hookbrew.surgery.carry import Heir

Children = tuple[tuple[str, nn.Module | None], ...]
"""The children of a module in their order."""


class Change(Protocol):
    """One change of one thing."""

    def do(self) -> None:
        """Make it."""

    def undo(self) -> None:
        """Put back what was there, the same objects in the same order."""

    def broken(self) -> str | None:
        """Why it cannot be undone: what somebody else has changed since; None if all is as it was left."""


@attrs.frozen(eq=False)
class Family:
    """The children of one module: which, under which names, in which order."""

    parent: nn.Module
    path: str
    """Where the parent is, for messages."""
    before: Children
    after: Children
    heirs: tuple[Heir, ...] = ()
    """What has taken the place of what."""

    def do(self) -> None:
        """The same dict with other things in it: whoever holds it sees them."""
        self.fill(self.after)

    def undo(self) -> None:
        """What comes back is where, and in the mode in which, its replacement is now."""
        for heir in self.heirs:
            heir.catch_up()
        self.fill(self.before)

    def fill(self, children: Children) -> None:
        """These children and no others."""
        self.parent._modules.clear()
        self.parent._modules.update(children)

    def broken(self) -> str | None:
        """Whether other children are there."""
        now = tuple(self.parent._modules.items())
        same = len(now) == len(self.after) and all(
            name == known and child is module for (name, child), (known, module) in zip(now, self.after, strict=True)
        )
        where = f"'{self.path}'" if self.path else "the model"
        return None if same else f"the children of {where} were changed since by somebody else"


@attrs.frozen(eq=False)
class Weight:
    """Which parameter one module has under one name."""

    module: nn.Module
    name: str
    path: str
    before: nn.Parameter
    after: nn.Parameter

    def do(self) -> None:
        """By the front door: recurrent layers keep a second list of their weights."""
        setattr(self.module, self.name, self.after)

    def undo(self) -> None:
        """The old parameter."""
        setattr(self.module, self.name, self.before)

    def broken(self) -> str | None:
        """Whether it is another one now."""
        if self.module._parameters.get(self.name) is self.after:
            return None
        return f"the parameter '{self.path}' was replaced since by somebody else"


@attrs.frozen(eq=False)
class Flag:
    """Whether one parameter is trained."""

    parameter: nn.Parameter
    path: str
    before: bool
    after: bool

    def do(self) -> None:
        """A gradient that is there goes: an optimizer would still apply it."""
        self.parameter.requires_grad_(self.after)
        if not self.after:
            self.parameter.grad = None

    def undo(self) -> None:
        """Trained as before."""
        self.parameter.requires_grad_(self.before)

    def broken(self) -> str | None:
        """Whether it has been switched."""
        if self.parameter.requires_grad is self.after:
            return None
        return f"requires_grad of '{self.path}' was set to {not self.after} since by somebody else"
