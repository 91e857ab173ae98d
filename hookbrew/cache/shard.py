"""A shard of the cache: records in one file, and where each lies in another. Both only grow.

    shard-4711-1f0c.data     records: the bytes of their parts, each part begins at a multiple of 16
    shard-4711-1f0c.index    entries of one size: key, offset, shapes, checksum of the record, checksum of the entry

One process writes a shard, and an entry only after its record: so what a killed process leaves is whole but for the
last entry, of which readers see by its checksum that it is none.
"""

from __future__ import annotations

import math
import mmap
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
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


class Piece(NamedTuple):
    """A part of one example, as it lies in the file."""

    shape: tuple[int, ...]
    bytes: Any
    """An array of them."""


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
        self.index, self.entries = index, np.frombuffer(index, entry, count)
        self.place = struct.Struct(f"<{SIZE}x2Q{len(parts)}B{len(parts) * RANK}I")  # a tenth of the time of numpy's
        self.checked = bytearray(count)
        """Of each record, whether its checksum was found right."""
        told = dict(self.unsound())
        self.rows = [row for row in range(count) if row not in told]
        """The records that are there."""
        while self.rows and not self.right(self.rows[-1]):  # as a power cut leaves the end
            told[self.rows[-1]] = self.damage(self.rows.pop())
        self.wrong = [told[row] for row in sorted(told)]
        """What no killed process leaves."""

    def unsound(self) -> Iterator[tuple[int, str]]:
        """The entries that are wrong, or name data that are not there, with what to say of them."""
        size, whole = self.entries.itemsize, memoryview(self.index)
        sums, ends = self.entries["own"].tolist(), (self.entries["offset"] + self.entries["bytes"]).tolist()
        for row, (own, end) in enumerate(zip(sums, ends, strict=True)):
            if zlib.crc32(whole[row * size : (row + 1) * size - 4]) != own:
                yield row, f"{self.path.with_suffix(INDEX)} is damaged: entry {row} has another checksum"
            elif end > len(self.data):
                place = self.path.with_suffix(DATA)
                yield row, f"{place} has {len(self.data)} bytes, and record {row} is not whole in it"

    def right(self, row: int) -> bool:
        """Whether a record has the checksum that it was written with; looked at once."""
        if not self.checked[row]:
            entry = self.entries[row]
            start, stop = int(entry["offset"]), int(entry["offset"] + entry["bytes"])
            self.checked[row] = zlib.crc32(self.data[start:stop]) == int(entry["crc32"])
        return bool(self.checked[row])

    def damage(self, row: int) -> str:
        """What to say of a record that is not right."""
        entry = self.entries[row]
        where = f"record {row}, {entry['bytes']} bytes from byte {entry['offset']}, of key {self.key(row).hex()}"
        return f"{self.path.with_suffix(DATA)} is damaged: {where}, has another checksum"

    def key(self, row: int) -> bytes:
        """The key of a record."""
        start = row * self.entries.itemsize
        return self.index[start : start + SIZE]

    def read(self, row: int) -> list[Piece]:
        """The parts of a record; their bytes are those of the file, not to be written into."""
        start, _, *numbers = self.place.unpack_from(self.index, row * self.entries.itemsize)
        found, count = [], len(self.parts)
        for number, part in enumerate(self.parts):
            shape = numbers[count + number * RANK :][: numbers[number]]
            stop = start + math.prod(shape) * part.torch.itemsize
            found.append(Piece(tuple(shape), self.data[start:stop]))
            start = stop + -stop % ALIGN
        return found


def mapped(path: Path) -> Any:
    """The bytes of a file as they are on the disk, an array; nothing is read yet. Raises OSError."""
    with path.open("rb") as file:
        empty = not file.seek(0, 2)
        return np.frombuffer(b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
