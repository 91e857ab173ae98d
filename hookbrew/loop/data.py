"""Batches: in which order, made of which samples, under which names.

The order of an epoch is a function of (seed, epoch) and nothing else: no global random state is read or
moved, so evaluating, logging or an extra worker never changes what is trained on. Several processes share each batch:
which samples it holds, and how many steps there are, does not depend on how many they are.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from typing import Any, Protocol

import attrs
import torch
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from hookbrew import words
from hookbrew.chance import kept_random, seeded
from hookbrew.errors import DataError
from hookbrew.loop.batch import SHARE, Batch, named, size_of
from hookbrew.loop.order import Order, Picked, mix
from hookbrew.ranks import Ranks

PATIENCE = 60
"""Seconds that a process goes on loading data after it was asked to terminate."""


class Feed(Protocol):
    """Whatever gives the batches of an epoch."""

    def __len__(self) -> int:
        """Batches in one epoch."""

    @property
    def samples(self) -> int:
        """Samples in one epoch."""

    def first(self) -> list[Batch]:
        """The first batch; of several tasks, that of each."""

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number`, counted from 1; start: how many of them were had before."""


class Samples(Protocol):
    """A dataset: a length and samples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class Loader:
    """A feed over a dataset with a length."""

    def __init__(
        self,
        samples: Samples,
        *,
        batch_size: int,
        seed: int | None,
        collate: Callable[[list[Any]], Any],
        fields: Sequence[str] = (),
        workers: int = 0,
        ranks: Ranks | None = None,
        pin: bool = False,
    ) -> None:
        """ranks: the processes that share each batch; all of it is given when left out.

        pin: let batches lie in memory from which a GPU copies while it computes.
        """
        if not (isinstance(samples, Sized) and hasattr(samples, "__getitem__")):
            raise DataError(f"a dataset needs len() and integer indices; {type(samples).__name__} lacks them")
        if isinstance(samples, Mapping):
            raise DataError(
                f"a {type(samples).__name__} is no dataset; take one of its values: {words.several(samples)}"
            )
        if not len(samples):
            raise DataError(f"the dataset is empty: {type(samples).__name__} of length 0")
        self._order = Order(len(samples), batch_size, seed, ranks=ranks or Ranks())
        self._fields = fields
        self.index: str | None = None
        """The key under which batches get the numbers of their samples, unless they have it; None for nowhere."""
        # the private generator: iterating a DataLoader otherwise draws from torch's global one
        self._loader: DataLoader[Any] = DataLoader(
            Drawn(samples, collate),  # type: ignore[arg-type]  # a dataset of whole batches
            batch_sampler=self._order,
            collate_fn=same,
            num_workers=workers,
            pin_memory=pin,
            persistent_workers=workers > 0,
            worker_init_fn=patient if workers else None,
            generator=torch.Generator().manual_seed(mix(seed or 0, "workers")),
        )

    def __len__(self) -> int:
        return len(self._order)

    @property
    def samples(self) -> int:
        """Samples in one epoch."""
        return self._order.length

    def first(self) -> list[Batch]:
        """The first batch of the first epoch, all of it."""
        return self.some(1)

    def some(self, count: int) -> list[Batch]:
        """The first batches of the first epoch, the same on all processes; fewer if it has no more."""
        ranks, self._order.ranks = self._order.ranks, Ranks()
        try:
            return list(islice(self.epoch(1), count))
        finally:
            self._order.ranks = ranks

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number`, counted from 1; start: how many of them were had before."""
        self._order.epoch, self._order.start = number, start
        for picked, made in noted(self._loader, number):
            if isinstance(made, DataError):
                raise made
            batch = named(made, self._fields)
            if self.index is not None:
                batch = {self.index: torch.tensor([*picked]), **batch}
            yield batch if picked.share is None else {**batch, SHARE: picked.share}

    def close(self) -> None:
        """End the workers, which otherwise wait for another epoch; there are no batches afterwards."""
        workers = getattr(self._loader, "_iterator", None)
        if workers is not None:
            workers._shutdown_workers()  # to drop them is not enough: the traceback of an error may hold them
        del self._loader


class Given:
    """A feed over a loader that the user made; its order is the user's."""

    def __init__(self, loader: Iterable[Any], fields: Sequence[str] = ()) -> None:
        if isinstance(loader, Iterator):
            raise DataError(f"{type(loader).__name__} can be used once only; give a list of batches or a DataLoader")
        self._loader, self._fields = loader, fields

    def __len__(self) -> int:
        try:
            return len(self._loader)  # type: ignore[arg-type]  # that is what is tried
        except TypeError:
            raise DataError(
                f"{type(self._loader).__name__} has no len(): give the length as steps, not epochs"
            ) from None

    @property
    def samples(self) -> int:
        """Samples in one epoch: those of the loader's dataset, or counted; raises DataError if there is no telling."""
        if isinstance(getattr(self._loader, "dataset", None), Sized):
            return len(self._loader.dataset)  # type: ignore[attr-defined]  # as just asked
        if isinstance(self._loader, list | tuple):
            return sum(size_of(named(batch, self._fields)) for batch in self._loader)
        raise DataError(
            f"{type(self._loader).__name__} does not say how many samples it has; give a DataLoader or a list"
        )

    @property
    def length(self) -> int | None:
        """Batches in one epoch; None if there is no telling."""
        try:
            return len(self)
        except DataError:
            return None

    @property
    def whole(self) -> bool:
        """Whether it is a DataLoader that knows of one process only."""
        return isinstance(getattr(self._loader, "sampler", None), RandomSampler | SequentialSampler)

    @property
    def shuffled(self) -> bool:
        """Whether it is a DataLoader that draws the order of an epoch when that begins."""
        return isinstance(getattr(self._loader, "sampler", None), RandomSampler)

    def first(self) -> list[Batch]:
        """The first batch."""
        return [next(iter(self.epoch(1)))]

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number`, those before `start` passed over; no batch at all ends the training.

        To pass over them moves no random state: it was moved when they were trained on.
        """
        batches = noted(self._loader, number)
        if start:
            with kept_random():
                had = sum(1 for _ in islice(batches, start))
        else:
            had = 0
        for batch in batches:
            had += 1
            yield named(batch, self._fields)
        if not had:
            raise DataError(f"the loader gave no batch in epoch {number}")


def noted(loader: Iterable[Any], number: int) -> Iterator[Any]:
    """What a loader gives; an exception of the user's data gets a note that says where it was."""
    position, batches = 0, iter(loader)
    while True:
        position += 1
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:
            error.add_note(f"raised by batch {position} of epoch {number} of the data")
            raise
        yield batch


@attrs.frozen
class Drawn:
    """A dataset of whole batches: samples with their numbers, joined, by random numbers of the batch's own.

    What samples and collate draw from Python, NumPy or torch depends on (seed, epoch, place) alone, not on how many
    processes load them, nor on what the training drew. A DataError is a value: a worker would raise it with its
    traceback for a message.
    """

    samples: Samples
    collate: Callable[[list[Any]], Any]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, picked: Picked) -> tuple[Picked, Any]:
        """The numbers of a batch, and the batch."""
        with seeded(picked.seed):
            try:
                return picked, self.collate([self.samples[number] for number in picked])
            except DataError as error:
                return picked, error


def patient(worker: int) -> None:
    """A process that loads data leaves an end to the one that trains, which first makes its step and a checkpoint.

    Terminals and clusters send signals to both. Asked to terminate, it ends by itself, but not at once.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(PATIENCE))


def same(batch: Any) -> Any:
    """What it is given: a batch is whole already."""
    return batch


def groups(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Up to `size` batches at a time; the last group of an epoch may be shorter."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
