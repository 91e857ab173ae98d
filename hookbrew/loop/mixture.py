"""Several tasks in one stream of batches, each of which says under `task` what it is of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from hookbrew.errors import DataError
from hookbrew.loop.batch import Batch
from hookbrew.loop.data import Feed
from hookbrew.loop.order import mix
from hookbrew.objective import TASK


class Mixture:
    """A feed that draws a task for each batch, with probability ~ (number of its samples) ^ tau.

    An epoch has as many batches as all tasks together. Which tasks they are of is a function of (seed, epoch) alone;
    a task begins a new pass over its data, in a new order, when it was drawn more often than it has batches. Each epoch
    begins at the beginning of all data: shuffle it, or what is last is seen least.
    """

    def __init__(self, feeds: Mapping[str, Feed], *, tau: float = 1.0, seed: int = 0) -> None:
        self._feeds, self._seed = dict(feeds), seed
        sizes = torch.tensor([float(feed.samples) for feed in feeds.values()], dtype=torch.float64)
        counted = (sizes / sizes.max()) ** tau  # of at most 1 each: no tau is too large for this
        self.shares: dict[str, float] = dict(zip(feeds, (counted / counted.sum()).tolist(), strict=True))
        """The probability of each task."""

    def __len__(self) -> int:
        return sum(map(len, self._feeds.values()))

    @property
    def parts(self) -> list[Feed]:
        """The feeds of the tasks."""
        return [*self._feeds.values()]

    @property
    def samples(self) -> int:
        """How many there are in all tasks together."""
        return sum(feed.samples for feed in self._feeds.values())

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number`, counted from 1; start: how many of them were had before."""
        generator = torch.Generator().manual_seed(mix(self._seed, "tasks", number))
        shares = torch.tensor([*self.shares.values()], dtype=torch.float64)
        drawn = torch.multinomial(shares, len(self), replacement=True, generator=generator).tolist()
        names = [*self._feeds]
        passes = -(-len(self) // min(map(len, self._feeds.values())))
        had = [names[position] for position in drawn[:start]]
        first = (number - 1) * passes + 1
        streams = {name: repeated(feed, first, had.count(name)) for name, feed in self._feeds.items()}
        for position in drawn[start:]:
            name = names[position]
            yield tagged(next(streams[name]), name)

    def first(self) -> list[Batch]:
        """The first batch of each task."""
        return [tagged(batch, name) for name, feed in self._feeds.items() for batch in feed.first()]


class Chain:
    """A feed that gives all of each task's batches, one task after the other, for evaluation."""

    def __init__(self, feeds: Mapping[str, Feed]) -> None:
        self._feeds = dict(feeds)

    def __len__(self) -> int:
        return sum(map(len, self._feeds.values()))

    @property
    def samples(self) -> int:
        """How many there are in all tasks together."""
        return sum(feed.samples for feed in self._feeds.values())

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number`, counted from 1; start: how many of them were had before."""
        for name, feed in self._feeds.items():
            for batch in feed.epoch(number, min(start, len(feed))):
                yield tagged(batch, name)
            start -= min(start, len(feed))

    def first(self) -> list[Batch]:
        """The first batch of each task."""
        return [tagged(batch, name) for name, feed in self._feeds.items() for batch in feed.first()]


def repeated(feed: Feed, number: int, start: int = 0) -> Iterator[Batch]:
    """The batches of epoch `number`, then of those after it, without end; start: how many were had before."""
    number, start = number + start // len(feed), start % len(feed)
    while True:
        yield from feed.epoch(number, start)
        number, start = number + 1, 0


def tagged(batch: Batch, task: str) -> Batch:
    """The batch with its task; raises DataError when the data uses that key itself."""
    if TASK in batch:
        raise DataError(f"the data of task {task!r} has a key {TASK!r}, which says of what task a batch is; rename it")
    return {**batch, TASK: task}
