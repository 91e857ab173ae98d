"""Puts outputs into the cache, into shards of its own: any number of processes may do so at once."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from hookbrew.cache.keys import Examples
from hookbrew.cache.kinds import Kind, Part, inside
from hookbrew.cache.shard import DATA, INDEX, RANK, layout, record
from hookbrew.errors import CacheError
from hookbrew.store import synced

LARGEST = 2**30
"""Bytes after which another shard begins."""


class Writer:
    """Open until its `with` block ends; what was put before then is safe from a kill, after it from a power cut."""

    def __init__(self, folder: Path, kind: Kind, there: Callable[[bytes], bool], largest: int = LARGEST) -> None:
        """there: whether a key has outputs already, which are not written again."""
        self.folder, self.kind, self.there, self.largest = folder, kind, there, largest
        self.entry, self.written = layout(kind.parts), set[bytes]()
        self.files: tuple[int, int] | None = None
        self.offset, self.failed = 0, False

    def put(self, examples: Examples, outputs: Mapping[str, Tensor]) -> int:
        """Keep the outputs of a batch; how many of its examples were not there yet.

        Tokens of padding are left out. Raises CacheError for outputs that do not fit the examples or the kind, and
        when the disk takes no more: what was put before stays.
        """
        return self.keep(examples, self.kind.encode(outputs))

    def keep(self, examples: Examples, tensors: Sequence[Tensor]) -> int:
        """As `put`, of what the kind has made of outputs."""
        if self.failed:
            raise CacheError(f"the cache {self.folder} could not be written before; open it anew")
        for part, tensor in zip(self.kind.parts, tensors, strict=True):
            require(part, tensor, examples)
        rows = [tensor.cpu() for tensor in tensors]
        data, index, fresh, offset = [], [], set[bytes](), self.started()
        for row, (key, span) in enumerate(zip(examples.keys, examples.spans, strict=True)):
            if key in fresh or key in self.written or self.there(key):
                continue
            own = sliced(self.kind.parts, [tensor[row] for tensor in rows], span if examples.length else None)
            content, entry = record(key, own, offset, self.entry)
            data.append(content)
            index.append(entry)
            fresh.add(key)
            offset += len(content)
        self.write(b"".join(data), b"".join(index))
        self.written |= fresh
        return len(fresh)

    def started(self) -> int:
        """Where the next record goes, in a new shard if the last one is full."""
        if self.files is not None and self.offset >= self.largest:
            self.close()
        return self.offset if self.files is not None else 0

    def write(self, data: bytes, index: bytes) -> None:
        """Records first, then what names them; raises CacheError."""
        if not index:
            return
        try:
            if self.files is None:
                self.files, self.offset = self.opened(), 0
            for file, content in zip(self.files, (data, index), strict=True):
                poured(file, content)
        except OSError as error:
            self.failed = True
            raise self.unwritten(error) from error
        self.offset += len(data)

    def opened(self) -> tuple[int, int]:
        """The files of a new shard, whose name no other process has."""
        path = self.folder / f"shard-{os.getpid()}-{secrets.token_hex(6)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        data = os.open(path.with_suffix(DATA), flags, 0o666)
        try:
            return data, os.open(path.with_suffix(INDEX), flags, 0o666)
        except OSError:
            os.close(data)
            raise

    def close(self) -> None:
        """Write what was put down to the disk; raises CacheError."""
        files, self.files = self.files, None
        if files is None:
            return
        try:
            for file in files:
                os.fsync(file)
            synced(self.folder)
        except OSError as error:
            self.failed = True
            raise self.unwritten(error) from error
        finally:
            for file in files:
                os.close(file)

    def unwritten(self, error: OSError) -> CacheError:
        """What to raise when the disk does not take it."""
        return CacheError(f"the cache {self.folder} cannot be written: {error.strerror or error}; what is in it stays")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def require(part: Part, tensor: Tensor, examples: Examples) -> None:
    """Raise CacheError unless a part of a batch has one row an example, and as many tokens as the mask."""
    shape = tuple(tensor.shape)
    if not shape or shape[0] != len(examples.keys):
        raise CacheError(f"{part.name!r} has shape {shape}, and the batch {len(examples.keys)} examples")
    if len(shape) - 1 > RANK:
        raise CacheError(f"{part.name!r} has shape {shape}; at most {RANK} dimensions an example can be kept")
    if examples.length and any(shape[1 + axis] != examples.length for axis in part.axes):
        raise CacheError(f"{part.name!r} has shape {shape}, and the mask {examples.length} tokens")
    if part.tokens and (len(shape) < 2 or (examples.length and shape[1] != examples.length)):
        raise CacheError(f"{part.name!r} has shape {shape}, and the mask {examples.length} tokens")


def sliced(parts: Sequence[Part], tensors: Sequence[Tensor], span: tuple[int, int] | None) -> list[Tensor]:
    """The parts of an example without what is padding."""
    if span is None:
        return [*tensors]
    return [tensor[inside(part, tensor.dim(), span)] for part, tensor in zip(parts, tensors, strict=True)]


def poured(file: int, content: bytes) -> None:
    """Write all of it; a disk that is almost full takes a part, and refuses the rest."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]
