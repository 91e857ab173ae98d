"""What a model is made of, found by running it once: its stacks of blocks, and the attention inside each block.

No table of architectures: a stack is a container whose children are of one class and run one after the other,
or a module that runs again and again.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
from torch import nn

from hookbrew.taps.probe import Call, Probe, probe
from hookbrew.taps.resolve import unwrap
from hookbrew.taps.walk import children, numbered


@attrs.frozen
class Spot:
    """A module, and which of its runs in one forward."""

    path: str
    call: int | None = None
    """None if it runs once; else its number, from 0."""


@attrs.frozen
class Block:
    """One layer of a stack."""

    spot: Spot
    attentions: tuple[Spot, ...] = ()
    """The attention modules that run inside it, in this order: in a decoder the one to itself comes first."""
    shape: tuple[int, ...] = ()
    """Of its output; () if that is no tensor."""


@attrs.frozen
class Stack:
    """Blocks that run one after the other."""

    path: str
    """Of the container: `bert.encoder.layer`; of the module itself if one module is all the blocks."""
    kind: str
    """The class of the blocks."""
    blocks: tuple[Block, ...]

    @property
    def shared(self) -> bool:
        """Whether the blocks are the runs of one module."""
        return any(block.spot.path == self.path for block in self.blocks)


@attrs.frozen
class Layout:
    """The stacks of one model, in the order in which they first run."""

    model: str
    """The class of the model."""
    stacks: tuple[Stack, ...] = ()

    @property
    def prefixes(self) -> tuple[str, ...]:
        """For each stack the shortest path under which it alone lies; '' if there is but one stack."""
        return tuple(prefix(stack.path, [s.path for s in self.stacks if s is not stack]) for stack in self.stacks)


def prefix(path: str, others: list[str]) -> str:
    """The shortest beginning of a path, cut at dots, that no other path has."""
    names = path.split(".")
    for length in range(len(names)):
        if not any(other.split(".")[:length] == names[:length] for other in others):
            return ".".join(names[:length])
    return path


def discover(model: nn.Module, run: Callable[[], object]) -> Layout:
    """The layout of a model, from one call of `run()`, which has to run `model` once; the model is left as it was."""
    return layout(model, probe(model, run))


def layout(model: nn.Module, seen: Probe) -> Layout:
    """The stacks of a model, of which a probe was taken.

    A stack is the outermost container of two or more children of one class that run once each, in order. What
    attention lies in none of these is looked for in containers that run several times, then in modules that do,
    then in containers of one child. Where there is attention, containers without any are no stacks.
    """
    inner = unwrap(model)
    find = Find(seen, {module: path for path, module in inner.named_modules()})
    for rule in (find.once, find.again, find.repeated, find.single):
        find.search(inner, rule, set())
    return Layout(type(inner).__name__, tuple(find.stack(*found) for found in find.stacks()))


def began(call: Call) -> int:
    """The place of a call among all of them."""
    return call.began


def woven(calls: list[Call], others: list[Call]) -> bool:
    """Whether two lists of calls take turns."""
    first, second = sorted((calls, others), key=lambda some: some[0].began)
    if calls is others or len(first) < 2 or len(second) < 2:
        return False
    return first[0].began < second[0].began < first[1].began < second[1].began


Rule = Callable[[nn.Module], list[Call]]
"""The blocks that a module is or contains, as calls; none if it is no stack."""


@attrs.define
class Find:
    """The search for stacks in the module tree, from the root down."""

    seen: Probe
    paths: dict[nn.Module, str]
    found: list[tuple[nn.Module, list[Call]]] = attrs.field(factory=list)
    covered: set[Call] = attrs.field(factory=set)
    """The calls that compute attention inside the stacks found so far."""

    def search(self, module: nn.Module, rule: Rule, visited: set[nn.Module]) -> None:
        """Take the outermost stacks of one kind; what is inside of them is theirs."""
        if module in visited:
            return
        visited.add(module)
        if blocks := rule(module):
            self.found.append((module, blocks))
            self.covered.update(call for block in blocks for call in self.seen.attentions(block))
            return
        for _, child in children(module):
            self.search(child, rule, visited)

    def once(self, module: nn.Module) -> list[Call]:
        """A container whose children run once each, in order."""
        calls = self.alike(module)
        ordered = calls == sorted(calls, key=began)
        return calls if len(calls) == len(module._modules) >= 2 and ordered else []

    def again(self, module: nn.Module) -> list[Call]:
        """A container whose children run more than once; the blocks are all their runs, in order."""
        several = len(module._modules) >= 2
        return self.new(sorted(self.alike(module), key=began)) if several else []

    def repeated(self, module: nn.Module) -> list[Call]:
        """A module that runs more than once."""
        calls = self.seen.of(module)
        return self.new(calls) if len(calls) >= 2 else []

    def single(self, module: nn.Module) -> list[Call]:
        """A container of one child that runs once: a model of one layer."""
        calls = self.alike(module)
        return self.new(calls) if len(calls) == len(module._modules) == 1 else []

    def alike(self, module: nn.Module) -> list[Call]:
        """The calls of the children, if all of them run, and are of one class."""
        inside = [child for _, child in children(module)] if numbered(module) else []
        # By name: FSDP gives modules classes of their own.
        if len({type(child).__name__ for child in inside}) != 1 or not all(map(self.seen.of, inside)):
            return []
        return [call for child in dict.fromkeys(inside) for call in self.seen.of(child)]

    def new(self, calls: list[Call]) -> list[Call]:
        """The calls, if there is attention inside of them, and none of it belongs to a stack already."""
        attentions = {inner for call in calls for inner in self.seen.attentions(call)}
        return calls if attentions and not attentions & self.covered else []

    def stacks(self) -> list[tuple[nn.Module, list[Call]]]:
        """Those with attention, or all if there is none; in the order in which they first run.

        Containers whose children take turns, as XLM has for attention and what follows it, hold parts of layers: none
        of them is a stack.
        """
        whole = [one for one in self.found if not any(woven(one[1], other[1]) for other in self.found)]
        attentive = [stack for stack in whole if any(map(self.seen.attentions, stack[1]))]
        return sorted(attentive or whole, key=lambda stack: stack[1][0].began)

    def stack(self, home: nn.Module, calls: list[Call]) -> Stack:
        """A stack as data."""
        blocks = (
            Block(self.spot(call), tuple(map(self.spot, self.seen.attentions(call))), call.size) for call in calls
        )
        return Stack(self.paths[home], type(calls[0].module).__name__, tuple(blocks))

    def spot(self, call: Call) -> Spot:
        """A call as data."""
        alone = len(self.seen.of(call.module)) == 1
        return Spot(self.paths[call.module], None if alone else call.number)
