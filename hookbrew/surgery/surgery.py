"""Surgery: edits of a model by module path, written down in a journal and undone to the same objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import attrs
from torch import Tensor, nn
from torch.optim import Optimizer

from hookbrew.errors import SurgeryError
from hookbrew.surgery.carry import settle
from hookbrew.surgery.change import Change, Flag
from hookbrew.surgery.follow import follow, named
from hookbrew.surgery.fresh import Values, drawer
from hookbrew.surgery.lists import gap, inserted, joined, removed, staying
from hookbrew.surgery.places import apart, bare, families, found, paths, unhooked, without
from hookbrew.surgery.ties import Pair, retied
from hookbrew.taps.walk import join
from hookbrew.words import several

Make = nn.Module | Callable[[str, nn.Module], nn.Module]
"""A module, or a function of the path and the old module that makes one."""


@attrs.frozen(eq=False)
class Edit:
    """One edit that was made."""

    verb: str
    selector: str
    tag: str | None
    paths: tuple[str, ...]
    """What it was made of, aliases included."""
    changes: tuple[Change, ...]

    def __str__(self) -> str:
        return f"{self.verb} '{self.selector}'" + (f" ({self.tag})" if self.tag else "")


class Surgery:
    """Edits one model, which has to be bare: wrap, shard and compile it afterwards.

    Selectors are those of taps, without a port: `encoder.layer[0:3].attention`, `**.dropout`. Each edit returns the
    paths that it was made of, aliases included, or raises SurgeryError and leaves the model as it was. An edit with a
    `tag` is made once: the same again does nothing. `undo` takes edits back, the last one first, to the same objects
    in the same order. With an optimizer, new parameters take the place of those that left, whose state goes, and
    comes back with them. What trains and moves in between is kept: only the edits are undone.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        bare(model)
        self.model, self.optimizer = model, optimizer
        self._edits: list[Edit] = []

    @property
    def edits(self) -> tuple[Edit, ...]:
        """What was made and not undone, the first one first."""
        return tuple(self._edits)

    @property
    def mark(self) -> int:
        """How many edits there are: `undo(mark)` comes back to here."""
        return len(self._edits)

    def swap(self, selector: str, make: Make, *, tag: str | None = None, untie: bool = False) -> list[str]:
        """Replace modules, under all their names, by a new one each: `surgery.swap("**.act", nn.ReLU())`.

        make: a module for the one that is named, or a function of path and old module. The new one comes to the
        device, the dtype and the mode of the old, and a weight that the old one shared is the new one's for all who
        shared it; untie leaves those the old weight. An old module with hooks of somebody's is refused.
        """
        if (known := self._known("swap", selector, tag)) is not None:
            return known
        chosen = found(self.model, selector)
        if isinstance(make, nn.Module) and len(chosen) > 1:
            raise SurgeryError(
                f"selector '{selector}' names {len(chosen)} modules, which would share one; give a function of path and"
                " module that makes one for each"
            )
        pairs = [
            Pair(path, old, make if isinstance(make, nn.Module) else make(path, old)) for path, old in chosen.items()
        ]
        return self._replace("swap", selector, tag, pairs, untie=untie)

    def wrap(self, selector: str, make: Callable[[nn.Module], nn.Module], *, tag: str | None = None) -> list[str]:
        """Replace modules by ones that hold them: `surgery.wrap("**.query", LoRA)`; hooks and tied weights stay."""
        if (known := self._known("wrap", selector, tag)) is not None:
            return known
        pairs = [Pair(path, old, make(old)) for path, old in found(self.model, selector).items()]
        for pair in pairs:
            if isinstance(pair.new, nn.Module) and all(module is not pair.old for module in pair.new.modules()):
                kind = type(pair.new).__name__
                raise SurgeryError(f"wrap '{pair.path}': the new {kind} does not hold it; swap is what replaces it")
        return self._replace("wrap", selector, tag, pairs)

    def insert(self, path: str, module: nn.Module, *, tag: str | None = None) -> list[str]:
        """Put a module into a Sequential or ModuleList, before the element at a path; `net[4]` of 4 is the end.

        Later elements get higher numbers. The module comes to the device, the dtype and the mode of its neighbour.
        """
        if (known := self._known("insert", path, tag)) is not None:
            return known
        above_it, parent, number = gap(self.model, path)
        if not isinstance(module, nn.Module):
            raise SurgeryError(f"insert '{path}': expected a module, got {type(module).__name__}")
        if any(part is parent for part in module.modules()):
            raise SurgeryError(f"insert '{path}': the new {type(module).__name__} holds the container itself")
        family = inserted(above_it, parent, number, module)
        beside = [child for _, child in (*family.before[number : number + 1], *family.before[number - 1 : number])]
        around = [*filter(None, beside), parent, *above(self.model, joined(above_it, number))]
        settle(module, None, around, self._parts())
        return self._make("insert", path, tag, [joined(above_it, number)], [family])

    def remove(self, selector: str, *, tag: str | None = None) -> list[str]:
        """Take elements out of a Sequential, ModuleList or ModuleDict; later ones get lower numbers.

        Other names of an element keep it. The configuration of a transformers model does not know of it: what is saved
        then loads wrong, without an error; `hb.student(teacher, keep=...)` makes one that loads right.
        """
        if (known := self._known("remove", selector, tag)) is not None:
            return known
        matched = found(self.model, selector, every=True)
        apart(selector, matched)
        families = removed(self.model, matched)
        stays = staying(self.model, families)
        for path, module in matched.items():
            unhooked(path, module, stays)
        return self._make("remove", selector, tag, matched, families)

    def freeze(self, selector: str, *, tag: str | None = None) -> list[str]:
        """Train the parameters of some modules no more, tied ones in other modules included; gradients go."""
        return self._turn("freeze", selector, tag, on=False)

    def unfreeze(self, selector: str, *, tag: str | None = None) -> list[str]:
        """Train the parameters of some modules; those that are integers cannot be."""
        return self._turn("unfreeze", selector, tag, on=True)

    def reset(self, selector: str, *, tag: str | None = None) -> list[str]:
        """Draw the weights of some modules anew, from torch's random state, in the same tensors.

        As a transformers model draws those inside it, else by `reset_parameters()` of each module. What an optimizer
        remembers of them goes. `undo` brings the old numbers back, whatever was trained since.
        """
        if (known := self._known("reset", selector, tag)) is not None:
            return known
        chosen = found(self.model, selector)
        apart(selector, chosen)
        values = Values([(path, module, drawer(self.model, path)) for path, module in chosen.items()])
        new = frozenset(parameter for module in chosen.values() for parameter in module.parameters())
        return self._make("reset", selector, tag, paths(self.model, [*chosen.values()]), [values], forgotten=new)

    def undo(self, to: int = 0) -> None:
        """Take back all edits after a mark, the last one first; SurgeryError where somebody else has been since."""
        if not 0 <= to <= self.mark:
            raise SurgeryError(f"undo to {to}: there are {self.mark} edits; expected 0..{self.mark}")
        if to < self.mark:
            bare(self.model)
        while self.mark > to:
            edit = self._edits[-1]
            for change in edit.changes:
                if reason := change.broken():
                    raise SurgeryError(f"{edit} cannot be undone: {reason}")
            for change in reversed(edit.changes):
                change.undo()
            self._edits.pop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def _known(self, verb: str, selector: str, tag: str | None) -> list[str] | None:
        """The paths of an edit that was made before; SurgeryError for its tag on another edit."""
        bare(self.model)
        for edit in self._edits if tag is not None else ():
            if edit.tag == tag:
                if (edit.verb, edit.selector) != (verb, selector):
                    raise SurgeryError(f"tag '{tag}' is of another edit: {edit.verb} '{edit.selector}'")
                return list(edit.paths)
        return None

    def _replace(
        self, verb: str, selector: str, tag: str | None, pairs: list[Pair], *, untie: bool = False
    ) -> list[str]:
        """Put new modules where old ones are."""
        for pair in pairs:
            replaceable(self.model, verb, pair)
        pairs = [pair for pair in pairs if pair.new is not pair.old]
        chosen = {pair.path: pair.old for pair in pairs}
        apart(selector, chosen)
        known = self._parts()
        olds = [pair.old for pair in pairs]
        rest = (module for _, module in without(self.model, olds))
        stays = {*map(id, rest), *(id(module) for pair in pairs for module in pair.new.modules())}
        for pair in pairs:
            unhooked(pair.path, pair.old, stays)
            settle(pair.new, pair.old, above(self.model, pair.path), known)
        ties = [] if untie else retied(self.model, pairs)
        heirs = {id(pair.old): (pair.old, pair.new) for pair in pairs}
        touched = paths(self.model, [*chosen.values()])
        return self._make(verb, selector, tag, touched, [*ties, *families(self.model, heirs)])

    def _turn(self, verb: str, selector: str, tag: str | None, *, on: bool) -> list[str]:
        """Set requires_grad of the parameters of some modules."""
        if (known := self._known(verb, selector, tag)) is not None:
            return known
        chosen = found(self.model, selector)
        inside = {p: join(path, name) for path, module in chosen.items() for name, p in module.named_parameters()}
        able = {p: path for p, path in inside.items() if p.is_floating_point() or p.is_complex()}
        if not able:
            raise SurgeryError(f"{verb} '{selector}': no parameter that could be trained is in {several(chosen)}")
        flags = [Flag(p, path, not on, on) for p, path in able.items() if p.requires_grad is not on]
        return self._make(verb, selector, tag, paths(self.model, [*chosen.values()]), flags)

    def _parts(self) -> set[int]:
        """The ids of all that the model is made of."""
        return {id(part) for part in (*self.model.modules(), *self.model.parameters(), *self.model.buffers())}

    def _make(
        self,
        verb: str,
        selector: str,
        tag: str | None,
        touched: Iterable[str],
        changes: Sequence[Change],
        *,
        forgotten: frozenset[Tensor] = frozenset(),
    ) -> list[str]:
        """Make the changes, all or none, and write them down."""
        touched = tuple(touched)
        with ExitStack() as back:
            before = named(self.model)
            for change in changes:
                change.do()
                back.callback(change.undo)
            if self.optimizer is not None:
                following = follow(self.optimizer, before, named(self.model), forgotten)
                if following is not None:
                    following.do()
                    changes = [*changes, following]
            back.pop_all()
        self._edits.append(Edit(verb, selector, tag, touched, tuple(changes)))
        return list(touched)


def replaceable(model: nn.Module, verb: str, pair: Pair) -> None:
    """Raise SurgeryError for what is no module, and for a module that would hold itself."""
    if not isinstance(pair.new, nn.Module):
        raise SurgeryError(f"{verb} '{pair.path}': expected a module, got {type(pair.new).__name__}")
    inside = {id(module) for module in pair.new.modules()}
    if any(id(parent) in inside for parent in above(model, pair.path)):
        raise SurgeryError(f"{verb} '{pair.path}': the new {type(pair.new).__name__} holds a module that would hold it")


def above(model: nn.Module, path: str) -> list[nn.Module]:
    """The modules around a path, the nearest first."""
    parts = path.split(".")
    return [model.get_submodule(".".join(parts[:end])) for end in range(len(parts) - 1, -1, -1)]
