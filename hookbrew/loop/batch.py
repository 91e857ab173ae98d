"""A batch: what samples become, under which names.

B batch. A batch is a dict of tensors and of whatever else the data gives; parts for one side alone lie flat in it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate

from hookbrew import words
from hookbrew.errors import DataError

Batch = dict[str, Any]
SHARE = "hookbrew.share"
"""The key under which a process finds how much of a batch it has; not there when it has all of it."""


@attrs.frozen
class Share:
    """A process's part of a batch, in samples."""

    mine: int
    """0 for a process that runs a sample of another one along, which counts as nothing."""
    whole: int


def named(batch: Any, fields: Sequence[str]) -> Batch:
    """The batch as a dict: mappings with their parts for student and teacher laid flat, tuples by `fields`."""
    if isinstance(batch, Mapping):
        return dict(flat(batch)) if "student" in batch or "teacher" in batch else dict(batch)
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


def flat(batch: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a batch; what goes into one side alone as `student.input_ids`, `teacher.large.input_ids`."""
    for key, value in batch.items():
        if isinstance(value, Mapping) and (prefix or key in ("student", "teacher")):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


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
        fill = self.values.get(key, self.values.get(key.rpartition(".")[2]))
        if fill is None:
            raise DataError(
                f"samples differ in length in {key!r} ({words.several(lengths)}); "
                f"say what fills the short ones up: pad = {{ {key.rpartition('.')[2]} = 0 }}"
            )
        return pad_sequence(parts, batch_first=True, padding_value=float(fill))


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def counted(batch: Batch) -> int:
    """The samples of a batch that are trained on here."""
    share: Share | None = batch.get(SHARE)
    return size_of(batch) if share is None else share.mine


def size_of(batch: Batch) -> int:
    """The number of samples of a batch: the first dimension of its first tensor."""
    for value in batch.values():
        if isinstance(value, Tensor) and value.dim():
            return value.shape[0]
    raise DataError(f"the batch holds no tensor; its keys are {words.several(batch)}")


def taken(batch: Batch, rows: Tensor) -> Batch:
    """Some rows of a batch, by their numbers; what is no tensor of samples is there as it is."""
    samples = size_of(batch)
    there = {k: isinstance(v, Tensor) and v.dim() and len(v) == samples for k, v in batch.items()}
    return {k: v[rows.to(v.device)] if there[k] else v for k, v in batch.items()}


def split(batch: Batch, size: int | None) -> Iterator[Batch]:
    """The batch in parts of at most `size` samples; whole if that is None. What is no tensor of samples is in all."""
    samples = size_of(batch)
    for start in range(0, samples, size or samples):
        here = slice(start, start + (size or samples))
        yield {k: v[here] if isinstance(v, Tensor) and v.dim() and len(v) == samples else v for k, v in batch.items()}


def digest(batches: Sequence[Batch]) -> int:
    """A checksum of the tensors of batches."""
    found = 0
    for batch in batches:
        for name in sorted(batch):
            found = zlib.crc32(name.encode(), found)
            if isinstance(batch[name], Tensor):
                found = zlib.crc32(batch[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy(), found)
    return found
