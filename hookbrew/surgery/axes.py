"""What each axis of each parameter is made of: hidden features, heads, or neurons of a feed-forward.

Found by comparing shapes, not by names: the class of the model is built from configs with one width changed, on the
meta device, where it takes no memory. Where two widths grow together, as in models whose heads always fill the hidden
width, a trace of the model (trace.py) says which axes belong to heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import attrs
import torch
from torch import Tensor, nn

from hookbrew.errors import SurgeryError
from hookbrew.surgery.rebuild import blank, tensors
from hookbrew.surgery.sizes import Sizes, measured, resized
from hookbrew.surgery.trace import IN, OUT, Attention, End, Trace, traced, weighted

HIDDEN: Final = "hidden"
HEADS: Final = "heads"
FFN: Final = "ffn"

Choice = tuple[str, str]
"""A role and a group: what is chosen together."""
Shapes = dict[str, tuple[int, ...]]
Place = tuple[str, int]
"""The key of a tensor in the state, and one of its dimensions."""


@attrs.frozen
class Axis:
    """One dimension of one tensor of the state that a width decides."""

    tensor: str
    """Its key in the state."""
    dim: int
    role: str
    """HIDDEN, HEADS or FFN."""
    group: str
    """What is chosen together: '' for the hidden features of the whole model, else an attention or a feed-forward."""
    size: int
    """How many units there are to choose from."""
    owner: Tensor
    """For each place along the axis, the unit that it belongs to; int64."""

    def kept(self, units: Tensor) -> Tensor:
        """The places to read for these units, so that they come in this order wherever the first of them stood."""
        table = self.owner.argsort(stable=True).view(self.size, -1)
        places = torch.empty_like(self.owner)
        places[table[: len(units)]] = table[units]
        return places[self.owner < len(units)]


@attrs.frozen
class Axes:
    """All axes of a model, and what was seen on the way."""

    axes: tuple[Axis, ...]
    ends: Mapping[End, str]
    """The ends of modules that belong to heads, each with its group."""
    sources: Mapping[str, str]
    """The modules whose inputs are neurons, each with its group."""
    free: bool
    """Whether the features of a head are a width of their own, so that heads need not fill the hidden width."""
    head: int
    """The features of one head."""

    def places(self, role: str) -> set[Place]:
        """The axes of a role."""
        return {(axis.tensor, axis.dim) for axis in self.axes if axis.role == role}

    def sizes(self) -> dict[tuple[str, str], int]:
        """How many units each choice has, by role and group."""
        return {(axis.role, axis.group): axis.size for axis in self.axes}


def lasting(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that a checkpoint holds, by name; the same object under each of its names."""
    state = model.state_dict()
    return {name: tensor for name, tensor in tensors(model).items() if name in state}


def shapes(model: nn.Module) -> Shapes:
    """The shapes of the state, by key."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def cut(found: Mapping[str, Tensor], axes: Axes, units: Mapping[Choice, Tensor]) -> dict[str, Tensor]:
    """The tensors with only these units, in this order; one with several names stays one."""
    names: dict[int, str] = {}
    made: dict[str, Tensor] = {}
    places = [(a.tensor, a.dim, a.kept(units[a.role, a.group])) for a in axes.axes if (a.role, a.group) in units]
    for name, tensor in found.items():
        if id(tensor) in names:
            made[name] = made[names[id(tensor)]]
            continue
        names[id(tensor)] = name
        made[name] = tensor.detach()
        for _, dim, index in (place for place in places if place[0] == name):
            made[name] = made[name].index_select(dim, index.to(tensor.device))
    return made


def named(model: nn.Module, end: End) -> list[tuple[str, int]]:
    """The parameters at one end of a module, each with its dimension: Linear is (out, in), Conv1D (in, out)."""
    module = model.get_submodule(end[0])
    turned = type(module).__name__ == "Conv1D" or isinstance(module, nn.Embedding)
    dim = int(turned) if end[1] == OUT else 1 - int(turned)
    bias = getattr(module, "bias", None)
    found = [(f"{end[0]}.weight", dim)]
    return [*found, (f"{end[0]}.bias", 0)] if end[1] == OUT and bias is not None else found


def surveyed(model: nn.Module, run: Callable[[], object], known: Axes | None = None) -> Axes:
    """The axes of a transformers model; run: runs it once on one sample.

    known: those of a model that differs in its widths alone, so that the shapes need not be compared once more.
    SurgeryError names the first axis that changes with a width in a way that is not understood.
    """
    was, sizes = shapes(model), measured(model.config)
    if known is not None:
        neurons = known.places(FFN)
    else:
        neurons = changed(model, was, attrs.evolve(sizes, ffn=sizes.ffn + 1)) if sizes.ffn else set()
    consumers = [path for path in weighted(model) if set(named(model, (path, IN))) & neurons]
    seen = traced(model, run, Trace(sizes.groups, sizes.heads, consumers))
    ends, owners = owned(model, seen.attentions, was)
    if known is not None:
        head, free, hidden = known.head, known.free, known.places(HIDDEN)
        every = known.places(HEADS)
    else:
        inner = [was[name][dim] for end in ends if end[1] == IN for name, dim in named(model, end)]
        head = inner[0] // sizes.heads if inner else sizes.hidden // sizes.heads
        free, hidden, every = grown(model, was, sizes, head, set(owners))
    links = linked(model, seen.sources, neurons)
    found = Found(was, sizes, owners, neurons, hidden, links)
    axes = tuple(found.axis(name, dim) for name, dim in sorted(every | neurons | hidden | set(owners)))
    return Axes(axes, ends, {path: links[f"{path}.weight"] for path in consumers}, free, head)


def grown(
    model: nn.Module, was: Shapes, sizes: Sizes, head: int, owned: set[Place]
) -> tuple[bool, set[Place], set[Place]]:
    """Whether heads need not fill the hidden width; what changes with that width; and what with it and the heads.

    owned: the axes of heads. Where heads fill the width, both grow by one group, and the two answers are one.
    """
    for wider in (sizes.hidden + sizes.heads, 2 * sizes.hidden):
        try:
            hidden = changed(model, was, attrs.evolve(sizes, hidden=wider), head)
        except SurgeryError:
            continue
        if owned and not hidden & owned:
            twice = attrs.evolve(sizes, hidden=2 * sizes.hidden, heads=2 * sizes.heads, groups=2 * sizes.groups)
            return True, hidden, changed(model, was, twice, head)
        break
    more = sizes.hidden + sizes.shared * head
    both = attrs.evolve(sizes, hidden=more, heads=sizes.heads + sizes.shared, groups=sizes.groups + 1)
    hidden = changed(model, was, both)
    return False, hidden, hidden


def changed(model: nn.Module, was: Shapes, sizes: Sizes, head: int | None = None) -> set[Place]:
    """The axes that are of another length with these widths."""
    now = shapes(blank(model, resized(model.config, sizes, head)))
    return {
        (name, dim)
        for name, shape in was.items()
        for dim, (old, new) in enumerate(zip(shape, now.get(name, shape), strict=True))
        if old != new
    }


def owned(
    model: nn.Module, attentions: Sequence[Attention], was: Shapes
) -> tuple[dict[End, str], dict[Place, tuple[str, Tensor]]]:
    """The ends of modules that belong to heads, and the axes there: each with its group and who owns which place.

    Attentions that share a module, like the position bias of T5, choose their heads together.
    """
    parents: dict[str, str] = {}
    patterns: dict[End, Tensor] = {}
    first: dict[End, str] = {}
    for number, attention in enumerate(attentions):
        own = next((end[0] for end in attention.ends if end[1] == IN), f"attention {number}")
        for end, pattern in attention.ends.items():
            unite(parents, first.setdefault(end, own), own)
            patterns[end] = patterns[end] | pattern if end in patterns else pattern
    ends = {end: root(parents, own) for end, own in first.items()}
    owners = {}
    for end, pattern in patterns.items():
        if not bool((pattern.sum(0) == 1).all()) or len(set(pattern.sum(1).tolist())) > 1:
            raise SurgeryError(
                f"the features at the {'input' if end[1] == IN else 'output'} of '{end[0]}' cannot be told apart by "
                "heads: some belong to several or to none, so heads cannot be removed"
            )
        for name, dim in named(model, end):
            if was[name][dim] != pattern.shape[1]:
                raise SurgeryError(f"'{end[0]}' has weights that do not fit what it computes; heads cannot be removed")
            owners[name, dim] = ends[end], pattern.int().argmax(0)
    return ends, owners


def linked(model: nn.Module, sources: Mapping[str, set[str]], neurons: set[Place]) -> dict[str, str]:
    """The group of each tensor that has neurons: a module that reads them, with those that make them."""
    parents: dict[str, str] = {}
    groups = {name: name.rpartition(".")[0] for name, _ in neurons}
    for consumer, makers in sources.items():
        for maker in makers:
            if set(named(model, (maker, OUT))) & neurons:
                unite(parents, maker, consumer)
    return {name: root(parents, path) for name, path in groups.items()}


def root(parents: dict[str, str], name: str) -> str:
    """The one that stands for all that were united with this."""
    while parents.get(name, name) != name:
        name = parents[name]
    return name


def unite(parents: dict[str, str], one: str, other: str) -> None:
    """From now on the two have one root, that of the other."""
    parents[root(parents, one)] = root(parents, other)


@attrs.frozen
class Found:
    """What is known of the axes, before each gets its role."""

    was: Shapes
    sizes: Sizes
    owners: Mapping[Place, tuple[str, Tensor]]
    neurons: set[Place]
    hidden: set[Place]
    links: Mapping[str, str]

    def axis(self, name: str, dim: int) -> Axis:
        """The one role of an axis; SurgeryError if it has several or none."""
        place, length = (name, dim), self.was[name][dim]
        if place in self.owners:
            if place in self.neurons:
                raise SurgeryError(f"dimension {dim} of '{name}' holds heads and neurons at once; neither can be cut")
            group, owner = self.owners[place]
            return Axis(name, dim, HEADS, group, self.sizes.groups, owner)
        role, size = (FFN, self.sizes.ffn or 1) if place in self.neurons else (HIDDEN, self.sizes.hidden)
        both = place in self.neurons and place in self.hidden
        if both or length % size or place not in (self.neurons | self.hidden):
            raise SurgeryError(
                f"dimension {dim} of '{name}', {length} long, changes with the width in a way that is not understood: "
                f"it is no multiple of hidden {self.sizes.hidden} or ffn {self.sizes.ffn}, and no attention was seen "
                "to use it"
            )
        group = self.links[name] if role == FFN else ""
        return Axis(name, dim, role, group, size, torch.arange(size).repeat(length // size))
