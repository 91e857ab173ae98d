"""Batches: in which order, made of which samples, under which names.

The order of an epoch is a function of (seed, epoch) and nothing else: no global random state is read or
moved, so evaluating, logging or an extra worker never changes what is trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, default_collate

from hookbrew import words
from hookbrew.errors import DataError

Batch = dict[str, Any]


def mix(seed: int, *names: object) -> int:
    """A seed of 63 bits for one purpose: a hash of its arguments, independent of all other purposes."""
    text = "\0".join(map(repr, (seed, *names)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Feed(Protocol):
    """Whatever gives the batches of an epoch."""

    def __len__(self) -> int:
        """Batches in one epoch."""

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of epoch `number`, counted from 1."""


class Samples(Protocol):
    """A dataset: a length and samples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@attrs.define
class Order:
    """A batch sampler: indices of one epoch, shuffled by (seed, epoch)."""

    length: int
    batch_size: int
    seed: int | None
    """None keeps the order of the dataset."""
    epoch: int = 1

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        if self.seed is None:
            indices = torch.arange(self.length)
        else:
            generator = torch.Generator().manual_seed(mix(self.seed, "order", self.epoch))
            indices = torch.randperm(self.length, generator=generator)
        for chunk in torch.split(indices, self.batch_size):
            yield chunk.tolist()


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
    ) -> None:
        if not (isinstance(samples, Sized) and hasattr(samples, "__getitem__")):
            raise DataError(f"a dataset needs len() and integer indices; {type(samples).__name__} lacks them")
        if isinstance(samples, Mapping):
            raise DataError(
                f"a {type(samples).__name__} is no dataset; take one of its values: {words.several(samples)}"
            )
        if not len(samples):
            raise DataError(f"the dataset is empty: {type(samples).__name__} of length 0")
        self._order = Order(len(samples), batch_size, seed)
        self._fields = fields
        # the private generator: iterating a DataLoader otherwise draws from torch's global one
        self._loader: DataLoader[Any] = DataLoader(
            samples,  # type: ignore[arg-type]  # any map-style dataset will do, lists included
            batch_sampler=self._order,
            collate_fn=Told(collate),
            num_workers=workers,
            persistent_workers=workers > 0,
            generator=torch.Generator().manual_seed(mix(seed or 0, "workers")),
        )

    def __len__(self) -> int:
        return len(self._order)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of epoch `number`, counted from 1."""
        self._order.epoch = number
        for batch in noted(self._loader, number):
            if isinstance(batch, DataError):
                raise batch
            yield named(batch, self._fields)

    def close(self) -> None:
        """End the workers, which otherwise wait for another epoch; there are no batches afterwards."""
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

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of epoch `number`; one that gives none ends the training with an error."""
        empty = True
        for batch in noted(self._loader, number):
            empty = False
            yield named(batch, self._fields)
        if empty:
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
class Told:
    """A collate function whose DataError is a value: a worker would raise it with its traceback for a message."""

    collate: Callable[[list[Any]], Any]

    def __call__(self, samples: list[Any]) -> Any:
        try:
            return self.collate(samples)
        except DataError as error:
            return error


def named(batch: Any, fields: Sequence[str]) -> Batch:
    """The batch as a dict: mappings as they are, tuples by `fields`."""
    if isinstance(batch, Mapping):
        return dict(batch)
    parts = [batch] if isinstance(batch, Tensor) else batch
    if isinstance(parts, list | tuple):
        if len(parts) == len(fields):
            return dict(zip(fields, parts, strict=True))
        given = f"the names {words.several(fields)}" if fields else "no names"
        raise DataError(
            f"a {type(batch).__name__} of {len(parts)} parts came from the data, and fields gives {given}; "
            'write one name a part: fields = ["input", "labels"]'
        )
    raise DataError(f"a {type(batch).__name__} came from the data; expected a mapping of names to tensors, or a tuple")


@attrs.frozen
class Pad:
    """Collate samples that are mappings: equal shapes are stacked, others filled up at the end.

    Raises DataError for a key whose samples differ in length and that has no fill value: a wrong one
    would be read as real input.
    """

    values: Mapping[str, float]
    fields: Sequence[str] = ()
    """Names for the parts of samples that are tuples."""

    def __call__(self, samples: list[Any]) -> Batch:
        rows = [named(sample, self.fields) for sample in samples]
        for row in rows:
            if row.keys() != rows[0].keys():
                raise DataError(
                    f"samples of one batch have different keys: {words.several(rows[0])}; and {words.several(row)}"
                )
        return {key: self.join(key, [row[key] for row in rows]) for key in rows[0]}

    def join(self, key: str, parts: list[Any]) -> Any:
        """One key of the batch: (B, ...), with the first dimension of the samples filled up if it varies."""
        if isinstance(parts[0], list):
            parts = [torch.tensor(part) for part in parts]
        elif hasattr(parts[0], "__array__"):
            parts = [torch.as_tensor(part) for part in parts]
        if not isinstance(parts[0], Tensor) or len({part.shape for part in parts}) == 1:
            return default_collate(parts)
        shapes = sorted({tuple(part.shape) for part in parts})
        if () in shapes or len({shape[1:] for shape in shapes}) > 1:
            raise DataError(
                f"samples differ in shape in {key!r} ({words.several(shapes)}); "
                "only the first dimension can be filled up"
            )
        lengths = [shape[0] for shape in shapes]
        if key not in self.values:
            raise DataError(
                f"samples differ in length in {key!r} ({words.several(lengths)}); "
                f"say what fills the short ones up: pad = {{ {key} = 0 }}"
            )
        return pad_sequence(parts, batch_first=True, padding_value=float(self.values[key]))


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


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def size_of(batch: Batch) -> int:
    """The number of samples of a batch: the first dimension of its first tensor."""
    for value in batch.values():
        if isinstance(value, Tensor) and value.dim():
            return len(value)
    raise DataError(f"the batch holds no tensor; its keys are {words.several(batch)}")
