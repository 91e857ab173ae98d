"""A shard of the cache: records in one file, and where each lies in another. Both only grow.

    shard-4711-1f0c.data     records: the bytes of their parts, each part begins at a multiple of 16
    shard-4711-1f0c.index    entries of one size: key, offset, shapes, checksum of the record, checksum of the entry

One process writes a shard, and an entry only after its record: so what a killed process leaves is whole but for the
last entry, of which readers see by its checksum that it is none.
"""

from __future__ import annotations

import math
import mmap
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hookbrew.cache.keys import SIZE, content
from hookbrew.cache.kinds import Part
from hookbrew.errors import CacheError

ALIGN = 16
RANK = 4
"""The most dimensions that a part of an example has."""
DATA, INDEX = ".data", ".index"


def layout(parts: Sequence[Part]) -> np.dtype[Any]:
    """An entry of the index; rank: the number of dimensions, shape: filled up with zeros."""
    shapes = [("rank", "u1", (len(parts),)), ("shape", "<u4", (len(parts), RANK))]
    fields = [("key", f"V{SIZE}"), ("offset", "<u8"), ("bytes", "<u8"), *shapes, ("crc32", "<u4"), ("own", "<u4")]
    return np.dtype(fields)


def record(key: bytes, tensors: Sequence[Tensor], offset: int, entry: np.dtype[Any]) -> tuple[bytes, bytes]:
    """The bytes of a record and of its entry; tensors: those of an example, on the CPU."""
    pieces = [bytes(content(tensor)) for tensor in tensors]
    data = b"".join(piece + bytes(-len(piece) % ALIGN) for piece in pieces)
    made = np.zeros((), entry)
    made["key"], made["offset"], made["bytes"], made["crc32"] = np.void(key), offset, len(data), zlib.crc32(data)
    for number, tensor in enumerate(tensors):
        made["rank"][number] = tensor.dim()
        made["shape"][number, : tensor.dim()] = tensor.shape
    made["own"] = zlib.crc32(made.tobytes()[:-4])
    return data, made.tobytes()


class Shard:
    """One that is read: what of it is whole, and what is not."""

    def __init__(self, path: Path, parts: Sequence[Part]) -> None:
        """path: without the ending. Raises CacheError when a file cannot be read."""
        self.path, self.parts, entry = path, parts, layout(parts)
        try:
            index = path.with_suffix(INDEX).read_bytes()  # before the data, which then has all that it names
            self.data = mapped(path.with_suffix(DATA))
        except OSError as error:
            raise CacheError(f"{error.filename or path} cannot be read: {error.strerror}") from error
        count, rest = divmod(len(index), entry.itemsize)
        self.size, self.cut = len(index), rest > 0
        """cut: whether the last entry is a part of one, as a killed process leaves it."""
        self.entries = np.frombuffer(index, entry, count)
        self.checked = bytearray(count)
        """Of each record, whether its checksum was found right."""
        told = {row: message for row in range(count) if (message := self.unsound(row))}
        self.rows = [row for row in range(count) if row not in told]
        """The records that are there."""
        while self.rows and not self.right(self.rows[-1]):  # as a power cut leaves the end
            told[self.rows[-1]] = self.damage(self.rows.pop())
        self.wrong = [told[row] for row in sorted(told)]
        """What no killed process leaves."""

    def unsound(self, row: int) -> str:
        """What is wrong with an entry, or with the length of the data that it names; empty if nothing is."""
        entry, data = self.entries[row], len(self.data)
        if zlib.crc32(entry.tobytes()[:-4]) != int(entry["own"]):
            return f"{self.path.with_suffix(INDEX)} is damaged: entry {row} has another checksum"
        if entry["offset"] + entry["bytes"] > data:
            return f"{self.path.with_suffix(DATA)} has {data} bytes, and record {row} is not whole in it"
        return ""

    def right(self, row: int) -> bool:
        """Whether a record has the checksum that it was written with; looked at once."""
        if not self.checked[row]:
            entry = self.entries[row]
            start, stop = int(entry["offset"]), int(entry["offset"] + entry["bytes"])
            self.checked[row] = zlib.crc32(content(self.data[start:stop])) == int(entry["crc32"])
        return bool(self.checked[row])

    def damage(self, row: int) -> str:
        """What to say of a record that is not right."""
        entry = self.entries[row]
        where = f"record {row}, {entry['bytes']} bytes from byte {entry['offset']}, of key {self.key(row).hex()}"
        return f"{self.path.with_suffix(DATA)} is damaged: {where}, has another checksum"

    def key(self, row: int) -> bytes:
        """The key of a record."""
        found: bytes = self.entries[row]["key"].tobytes()
        return found

    def read(self, row: int) -> list[Tensor]:
        """The parts of a record: views of the file, not to be written into."""
        entry = self.entries[row]
        return list(self.views(int(entry["offset"]), entry))

    def views(self, start: int, entry: Any) -> Iterator[Tensor]:
        """One part after the other, from a place in the data."""
        for part, rank, shape in zip(self.parts, entry["rank"], entry["shape"], strict=True):
            sizes = [int(size) for size in shape[:rank]]
            stop = start + math.prod(sizes) * part.torch.itemsize
            yield self.data[start:stop].view(part.torch).view(sizes)
            start = stop + -stop % ALIGN


def mapped(path: Path) -> Tensor:
    """The bytes of a file as they are on the disk, (bytes,); nothing is read yet. Raises OSError."""
    with path.open("rb") as file:
        if not file.seek(0, 2):
            return torch.empty(0, dtype=torch.uint8)
        area = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that nobody may write into it, and nobody does
        return torch.from_numpy(np.frombuffer(area, np.uint8))
