"""Losses on large maps of attention, some samples at a time: the maps of a whole batch are never there.

A loss gives the mean over what is valid, and what is valid is known: the mean of a batch is that of its tiles, weighed
by what each counts, as that of a step is of its micro-batches. The gradients of queries and keys are made in the
forward, tile by tile, and only scaled in the backward: no map waits for it, and none is computed again there. Two
losses on one layer make its tiles twice.

Maps are taken whole where they are small; where the model makes them itself, in an explicit softmax; where a mask
learns; of models that torch.compile runs and of students in a wrapper that averages gradients; and by losses that are
not `tileable`.

B batch, H heads, L queries, S keys, D features of a head; b samples of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import attrs
import torch
from torch import Tensor, nn
from torch.autograd import Function

from hookbrew.errors import ObjectiveError
from hookbrew.objective.align import Valid
from hookbrew.objective.attended import ATTENDED
from hookbrew.objective.source import Source
from hookbrew.objective.term import Term, require_scalar
from hookbrew.taps import Dense, Map, wide
from hookbrew.taps.maps import lone

BUFFER: Final = 2**24
"""Bytes of a map of one tile on a CPU, at most, unless one sample's takes more: larger blocks go back to the system
each time, and pages fault in again. A map of more than two is large."""
ELSEWHERE: Final = 2**27
"""The same on other devices, where many small operations take longer than a few large ones."""
ROLES: Final = frozenset(("student", "teacher", "mask"))
"""What a loss may ask for; labels and numbers of samples are of the whole batch."""


def tileable(source: Source) -> bool:
    """Whether a loss may be computed by tiles: on an attention, a mean over positions or pairs, with no memory.

    One that counts samples, or says that micro-batches do not add up, may compare samples with each other.
    """
    options = source.table.options
    meant = source.counts in ("positions", "pairs") and "micro_batches" not in getattr(options, "exempt", {})
    return source.takes in ATTENDED and meant and not isinstance(source.function, nn.Module) and source.roles <= ROLES


def large(found: Map) -> bool:
    """Whether a map is better computed by tiles."""
    return found.nbytes > 2 * buffer(found.device)


def related(source: Source, vectors: Tensor) -> bool:
    """Whether what a loss makes of queries, keys or values, (B, H, L, D), is as large: relations, (B, R, L, L)."""
    if ATTENDED[source.takes].square or room(source, vectors) <= 2 * buffer(vectors.device):
        return False
    return lone(vectors)


def room(source: Source, found: Tensor | Map) -> int:
    """Bytes of a map of a batch, or of relations, for which a loss may cut R `heads` of its own."""
    if isinstance(found, Map) or ATTENDED[source.takes].square:
        return found.nbytes
    told = getattr(source.table.options, "heads", None)
    heads = told if isinstance(told, int) else found.shape[1]
    return len(found) * heads * found.shape[2] ** 2 * max(torch.float32.itemsize, found.itemsize)


def buffer(device: torch.device) -> int:
    """Bytes of a map of one tile."""
    return BUFFER if device.type == "cpu" else ELSEWHERE


class Side(NamedTuple):
    """What a loss compares of one model, of a whole batch: a tensor, or what a map is computed from."""

    whole: Tensor | Dense
    port: str = ""

    @classmethod
    def of(cls, found: Tensor | Map) -> Side:
        """What a view gives."""
        return cls(found) if isinstance(found, Tensor) else cls(found.dense(), found.port)

    @property
    def leaves(self) -> list[Tensor]:
        """The tensor, or queries and keys, (B, H, L or S, D)."""
        if isinstance(self.whole, Tensor):
            return [self.whole]
        return [one for one in (self.whole.q, self.whole.k) if one is not None]

    def part(self, samples: slice, leaves: Sequence[Tensor]) -> Tensor:
        """What the loss is given of some samples; leaves: theirs."""
        if isinstance(self.whole, Tensor):
            return leaves[0]
        q, k = leaves
        return self.whole.cut(samples)._replace(q=q, k=k).read(self.port)


class Tile(NamedTuple):
    """Some samples of a batch."""

    samples: slice
    valid: Valid
    counted: float | Tensor
    """How much of them that is."""


@attrs.frozen(eq=False)
class Walk:
    """A term that is computed by tiles."""

    term: Term
    progress: float
    student: Side
    teacher: Side | None
    tiles: Sequence[Tile]

    def value(self) -> Tensor:
        """The mean over the batch, a scalar."""
        made: Tensor = Tiled.apply(self, torch.is_grad_enabled(), *self.student.leaves)  # type: ignore[no-untyped-call]
        return made

    def walked(self, leaves: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor, list[Tensor | None]]:
        """The mean over the batch, and its gradient for each leaf of the student, in fp32 at least, or None."""
        total, mean = total_of(self.tiles), None
        grads: list[Tensor | None] = [None for _ in leaves]
        for tile in self.tiles:
            value, slopes = self.tile(tile, leaves, wanted)
            share = ratio(tile.counted, total, value.dtype)
            mean = value * share if mean is None else mean + value * share
            for place, slope in enumerate(slopes):
                if slope is not None:
                    made = grads[place]
                    if made is None:
                        made = grads[place] = torch.zeros_like(leaves[place], dtype=slope.dtype)
                    torch.mul(slope, share, out=made[tile.samples])
        assert mean is not None
        return mean, grads

    def tile(
        self, tile: Tile, leaves: Sequence[Tensor], wanted: Sequence[bool]
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """The mean over a tile, and its gradients; its maps are gone when this returns."""
        cut, source, given = tile.samples, self.term.source, dict[str, Any]()
        own = [wide(x[cut]).detach().requires_grad_(want) for x, want in zip(leaves, wanted, strict=True)]
        if self.teacher is not None:
            given["teacher"] = self.teacher.part(cut, [x[cut] for x in self.teacher.leaves])
        if "mask" in source.roles:
            given["mask"] = tile.valid.given(own[0].device) if source.strict else tile.valid.mask
        with torch.set_grad_enabled(any(wanted)):
            value = self.term.mean({"student": self.student.part(cut, own), **given}, self.progress)
        require_scalar(self.term.name, value)
        if not value.requires_grad:
            return value, ()
        found = iter(torch.autograd.grad(value, [x for x in own if x.requires_grad], allow_unused=True))
        return value.detach(), [next(found) if x.requires_grad else None for x in own]


class Tiled(Function):
    """A walk as one operation, from queries and keys to the mean."""

    @staticmethod
    def forward(ctx: Any, walk: Walk, learning: bool, *leaves: Tensor) -> Tensor:
        """The mean, a scalar."""
        wanted = [learning and need for need in ctx.needs_input_grad[2:]]
        with torch.autocast(leaves[0].device.type, enabled=False):  # products of gradients have a type of their own
            mean, grads = walk.walked(leaves, wanted)
        ctx.kinds = [leaf.dtype for leaf in leaves]
        ctx.save_for_backward(*grads)
        return mean

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        """The gradients, times that of the mean."""
        slope = upstream[0]
        if torch.is_grad_enabled():  # else a second derivative would find nothing that leads here, and miss a part
            made = Scaled.apply(slope.detach().requires_grad_(), ctx.kinds, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        else:
            made = scaled(slope, ctx.kinds, ctx.saved_tensors)
        return (None, None, *made)


class Scaled(Function):
    """The scaling, where somebody may ask for its derivative."""

    @staticmethod
    def forward(ctx: Any, slope: Tensor, kinds: Sequence[torch.dtype], *saved: Tensor | None) -> Any:
        """Each times the slope."""
        return scaled(slope, kinds, saved)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        """Raise ObjectiveError."""
        raise ObjectiveError(
            "a loss on large maps of attention has no second derivatives; in smaller batches, with whole maps, it has"
        )


def scaled(slope: Tensor, kinds: Sequence[torch.dtype], saved: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Each gradient times that of the mean, in the type of what it is the gradient of."""
    return tuple(
        None if one is None else (one * slope.to(one.dtype)).to(kind) for one, kind in zip(saved, kinds, strict=True)
    )


def walk(term: Term, student: Tensor | Map, teachers: Sequence[Tensor | Map], valid: Valid, progress: float) -> Walk:
    """How a term is computed by tiles; teachers: none, or one. valid: what of the batch counts."""
    with torch.no_grad():
        taught = [Side.of(teacher) for teacher in teachers]
    samples, size = student.shape[0], max(room(term.source, one) for one in (student, *teachers))
    cuts = evened(samples, max(1, buffer(student.device) * samples // size))
    parts = [valid.part(cut) for cut in cuts]
    counts = [part.count(term.scope.counts, cut.stop - cut.start) for part, cut in zip(parts, cuts, strict=True)]
    tiles = [Tile(*each) for each in zip(cuts, parts, counts, strict=True)]
    return Walk(term, progress, Side.of(student), taught[0] if taught else None, tiles)


def evened(samples: int, most: int) -> list[slice]:
    """A batch cut into parts of `most` samples or fewer, all of one size, or nearly."""
    number = -(-samples // most)
    return [slice(samples * i // number, samples * (i + 1) // number) for i in range(number)]


def total_of(tiles: Sequence[Tile]) -> float | Tensor:
    """What counts in all of them, 1 at least."""
    total = sum((tile.counted for tile in tiles), start=0.0)
    return total.clamp(min=1) if isinstance(total, Tensor) else max(1.0, total)


def ratio(count: float | Tensor, total: float | Tensor, kind: torch.dtype) -> float | Tensor:
    """The part that a tile has in the mean; of counts on a device a scalar there."""
    if isinstance(count, Tensor):
        count = count.to(kind)
    return count / (total.to(kind) if isinstance(total, Tensor) else total)


def glimpse(found: Map) -> Tensor:
    """The map of the first sample in the shape of all, (B, H, L, S): what a look at kinds and sizes needs."""
    with torch.no_grad():
        return found.dense().cut(slice(0, 1)).read(found.port).expand(found.shape)
