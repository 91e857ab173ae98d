"""The module tree of a model as a user has to know it: path, class, output shape, and the selector to paste.

One forward without gradients fills it (probe.py). Repeated blocks are one line: `layer[0:12]`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
from torch import nn

from hookbrew.taps.layout import Layout, layout
from hookbrew.taps.probe import Probe, probe
from hookbrew.taps.resolve import unwrap
from hookbrew.taps.selector import ALIAS, spell
from hookbrew.taps.walk import children, join, numbered


@attrs.frozen
class Node:
    """One line of the tree: a module, or several equal neighbours in a container."""

    name: str
    """What stands below the parent: `attention`, `layer[0:12]`; `model` for the model itself."""
    selector: str
    """Ready to paste."""
    path: str
    """The full path of the module, of the first if there are several; '' for the model."""
    kind: str
    """The name of the class."""
    count: int
    """How many modules this line stands for."""
    calls: int
    """How often each ran in the forward; 0 if it is never called, so that a tap on it would be an error."""
    shapes: tuple[str, ...]
    """The outputs, one text for each different one: `(2, 16, 128)`, `BertOutput{logits: (2, 6)}`."""
    parameters: int
    """How many numbers each of the modules holds, shared ones counted once."""
    ports: tuple[str, ...] = ()
    """What can be tapped besides inputs and outputs: `attn` and others, where the module computes attention itself."""
    children: tuple[Node, ...] = ()


@attrs.frozen
class Logits:
    """What the alias `logits` means: the model's output, and the tensor that is picked from it."""

    selector: str
    shape: tuple[int, ...]


@attrs.frozen
class Outline:
    """The tree of one model, and what its aliases mean."""

    root: Node
    layout: Layout
    logits: Logits | None
    """None if the model's output has no tensor that a tap without a pick could mean."""

    def nodes(self) -> Iterator[tuple[int, Node]]:
        """Every line with its depth, from the top."""
        pending = [(0, self.root)]
        while pending:
            depth, node = pending.pop()
            yield depth, node
            pending += [(depth + 1, child) for child in reversed(node.children)]


def outline(model: nn.Module, run: Callable[[], object]) -> Outline:
    """Call `run()`, which has to run `model` once, in eval mode and without gradients, and draw what happened.

    The model and the random states are left as they were found, as `probe` says.
    """
    inner = unwrap(model)
    seen = probe(inner, run)
    return Outline(Draw(seen).root(inner), layout(inner, seen), logits(inner, seen))


def logits(model: nn.Module, seen: Probe) -> Logits | None:
    """The tensor that is picked from the model's own output."""
    for call in seen.of(model):
        return Logits(f":out{call.picked}", call.size) if call.size else None
    return None


@attrs.frozen
class Draw:
    """From modules and what they did to nodes."""

    seen: Probe
    signatures: dict[nn.Module, Any] = attrs.field(factory=dict)

    def root(self, model: nn.Module) -> Node:
        """The node of the model, whose output is `:out`."""
        return self.node([("", model)], "model", ":out", "")

    def node(self, group: Sequence[tuple[str, nn.Module]], name: str, selector: str, path: str) -> Node:
        """The node of equal modules, which are drawn by the first."""
        module = group[0][1]
        return Node(
            name=name,
            selector=f"{selector}:out" if selector == ALIAS else selector,
            path=path,
            kind=type(module).__name__,
            count=len(group),
            calls=len(self.seen.of(module)),
            shapes=self.seen.shapes(module),
            parameters=sum(parameter.numel() for parameter in module.parameters()),
            ports=self.seen.ports(module),
            children=tuple(self.below(module, "", selector if path else "", path)),
        )

    def below(self, module: nn.Module, name: str, selector: str, path: str) -> Iterator[Node]:
        """The nodes of the children; a container that is never called gives way to its own."""
        for group in self.groups(module):
            first, child = group[0]
            inside = spelled(module, group) if selector else braced(group)
            index = inside.startswith("[")
            named = name + inside if index or not name else f"{name}.{inside}"
            chosen = selector + inside if index else join(selector, inside)
            if getattr(child.forward, "__func__", None) is nn.Module.forward:
                yield from self.below(child, named, chosen, join(path, first))
            else:
                yield self.node(group, named, chosen, join(path, first))

    def groups(self, module: nn.Module) -> Iterator[list[tuple[str, nn.Module]]]:
        """The children; in a container with numbers, equal neighbours together."""
        if not numbered(module):
            yield from ([item] for item in children(module))
            return
        for _, group in itertools.groupby(children(module), key=lambda item: self.signature(item[1])):
            yield list(group)

    def signature(self, module: nn.Module) -> Any:
        """What two modules have in common if they may share a line: all below them, except the numbers."""
        if module not in self.signatures:
            did = len(self.seen.of(module)), self.seen.shapes(module), self.seen.ports(module)
            below = tuple((name, self.signature(child)) for name, child in children(module))
            own = sum(parameter.numel() for parameter in module.parameters())
            self.signatures[module] = (type(module), did, own, below)
        return self.signatures[module]


def spelled(module: nn.Module, group: Sequence[tuple[str, nn.Module]]) -> str:
    """How a selector names neighbours below their parent: `[3]`, `[0:12]`, or the name of the one."""
    if not numbered(module):
        return spell(group[0][0])
    order = [name for name, _ in children(module)]
    start = order.index(group[0][0])
    return f"[{start}]" if len(group) == 1 else f"[{start}:{start + len(group)}]"


def braced(group: Sequence[tuple[str, nn.Module]]) -> str:
    """The same at the top, where there is no name that an index could follow."""
    names = [spell(name) for name, _ in group]
    return names[0] if len(names) == 1 else f"{{{','.join(names)}}}"
