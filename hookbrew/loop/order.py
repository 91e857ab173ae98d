"""Which samples a batch is of: a function of (seed, epoch) and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import attrs
import torch
from torch import Tensor

from hookbrew.loop.batch import Share
from hookbrew.ranks import Ranks


def mix(seed: int, *names: object) -> int:
    """A seed of 63 bits for one purpose: a hash of its arguments, independent of all other purposes."""
    text = "\0".join(map(repr, (seed, *names)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Picked(list[int]):
    """The numbers of the samples of one batch, or of this process's part of it, and the seed of what they draw."""

    seed: int = 0
    share: Share | None = None
    """How much of the batch it is; None for a process alone."""


@attrs.define
class Order:
    """A batch sampler: the batches of one epoch from `start` on, shuffled by (seed, epoch).

    Of several processes each takes every so many-th sample of a batch. At the end of an epoch there may be too few for
    all: those that take part have two at least, for batch norm cannot train on one, unless whole batches have less for
    each. One for which none is left runs the first ones along with the others, and counts them as nothing.
    """

    length: int
    batch_size: int
    seed: int | None
    """None keeps the order of the dataset."""
    epoch: int = 1
    start: int = 0
    ranks: Ranks = attrs.field(factory=Ranks)

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[Picked]:
        if self.seed is None:
            indices = torch.arange(self.length)
        else:
            generator = torch.Generator().manual_seed(mix(self.seed, "order", self.epoch))
            indices = torch.randperm(self.length, generator=generator)
        for place, chunk in enumerate(torch.split(indices, self.batch_size)):
            if place >= self.start:
                yield self.picked(chunk, place)

    def picked(self, chunk: Tensor, place: int) -> Picked:
        """This process's part of a batch, all of it for a process alone."""
        rank, size = self.ranks.rank, self.ranks.size
        least = max(1, min(2, self.batch_size // size))
        working = min(size, max(1, len(chunk) // least))
        mine = chunk[rank::working] if rank < working else chunk[:0]
        picked = Picked((mine if len(mine) else chunk[:least]).tolist())
        picked.seed = mix(self.seed or 0, "samples", self.epoch, place, *([rank] if rank else []))
        picked.share = Share(len(mine), len(chunk)) if size > 1 else None
        return picked
