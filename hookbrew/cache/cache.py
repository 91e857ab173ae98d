"""Outputs of a teacher in a folder, by key: what is there, and a batch of it.

cache.json      the fingerprint of what made them; another one is refused
shard-...       the outputs, see `hookbrew.cache.shard`
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from hookbrew import folder as folders
from hookbrew import words
from hookbrew.cache.fingerprint import FORMAT, Fingerprint
from hookbrew.cache.keys import Examples, content
from hookbrew.cache.kinds import Kind, Part, inside, parted
from hookbrew.cache.shard import INDEX, Piece, Shard
from hookbrew.cache.writer import LARGEST, Writer
from hookbrew.errors import CacheError, FolderError

FACTS = "cache.json"


class Cache:
    """One that is read; others may write it meanwhile."""

    def __init__(self, folder: Path) -> None:
        """Raises CacheError for a folder that has no cache, or one of another format."""
        self.folder, self.facts = folder, facts(folder)
        self.parts = parted(self.facts["stored"])
        self.shards: dict[Path, Shard] = {}
        self.places: dict[bytes, list[tuple[Shard, int]]] = {}
        """Where the outputs of each key are; two processes may have written the same ones."""
        self.refresh()

    def refresh(self) -> None:
        """Look for what was written since; raises CacheError for files that cannot be read."""
        for path in sorted(self.folder.glob(f"shard-*{INDEX}")):
            old = self.shards.get(path)
            if old is not None and old.size == path.stat().st_size:
                continue
            self.shards[path] = shard = Shard(path.with_suffix(""), self.parts)
            if old is not None:
                shard.checked[: len(old.checked)] = old.checked
            for row in shard.rows:
                places = self.places.setdefault(shard.key(row), [])
                places[:] = [(s, r) for s, r in places if s.path != shard.path] + [(shard, row)]

    @property
    def wrong(self) -> list[str]:
        """What of it is damaged, as far as it was looked at; a tail that a killed process left is not."""
        return [message for shard in self.shards.values() for message in shard.wrong]

    @property
    def cut(self) -> int:
        """How many shards end in a part of an entry: their process was killed, or writes at this moment."""
        return sum(shard.cut for shard in self.shards.values())

    @property
    def size(self) -> int:
        """Bytes of all records."""
        return sum(len(shard.data) for shard in self.shards.values())

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, key: bytes) -> bool:
        return key in self.places

    def missing(self, examples: Examples) -> list[int]:
        """The rows of a batch that have no outputs here."""
        return [row for row, key in enumerate(examples.keys) if key not in self.places]

    def absent(self, examples: Examples) -> list[int]:
        """The rows of a batch that have no whole outputs here; what is damaged no longer counts as there."""
        for key in examples.keys:
            places = self.places.get(key)
            if places and not places[0][0].right(places[0][1]):
                places[:] = [(shard, row) for shard, row in places if shard.right(row)]
                if not places:
                    del self.places[key]
        return self.missing(examples)

    def read(self, examples: Examples) -> dict[str, Tensor]:
        """The outputs of a batch, (B, ...), or (B, L, ...) with zeros where its mask says padding; on the CPU.

        As they were put, bit for bit, in the dtype that they are kept in. Each record is checked the first time that
        it is read. Raises CacheError for examples that are not here, and for damage, with its place.
        """
        rows = self.missing(examples)
        if rows:
            first = f"the first is row {rows[0]}, key {examples.keys[rows[0]].hex()}"
            raise CacheError(
                f"the cache {self.folder} has no outputs for {len(rows)} of {len(examples.keys)} examples; {first}"
            )
        found = [self.record(key) for key in examples.keys]
        columns = zip(self.parts, zip(*found, strict=True), strict=True)
        return {part.name: joined(part, column, examples) for part, column in columns}

    def record(self, key: bytes) -> list[Piece]:
        """The parts of an example, from the first place where they are whole; raises CacheError."""
        for shard, row in self.places[key]:
            if shard.right(row):
                return shard.read(row)
        shard, row = self.places[key][0]
        raise CacheError(f"{shard.damage(row)}; verify the cache, and build what is lost again")

    def verify(self) -> list[str]:
        """Check every record; what is damaged is told, and no longer counts as there, so that building mends it."""
        return self.wrong + [shard.damage(row) for shard, row in self.damaged()]

    def damaged(self) -> Iterator[tuple[Shard, int]]:
        """The records whose checksum is another; each is forgotten."""
        for key, places in [*self.places.items()]:
            bad = [(shard, row) for shard, row in places if not shard.right(row)]
            places[:] = [place for place in places if place not in bad]
            if not places:
                del self.places[key]
            yield from bad

    def writer(self, kind: Kind, *, largest: int = LARGEST) -> Writer:
        """Puts more into it; what is there now is not written again. kind: the one that it was made for."""
        if kind.parts != self.parts:
            raise CacheError(f"the cache {self.folder} keeps {self.parts}, not {kind.parts}")
        return Writer(self.folder, kind, self.__contains__, largest)


def opened(folder: Path, fingerprint: Fingerprint) -> Cache:
    """The cache of what has this fingerprint, made if there is none; several processes may do so at once.

    Raises CacheError when it is of something else, with what differs, and when it cannot be made.
    """
    now = fingerprint.facts()
    if not (folder / FACTS).exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / folders.LOCK):
                if not (folder / FACTS).exists():
                    folders.write(folder / FACTS, json.dumps(now, indent=1) + "\n")
        except (OSError, FolderError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise CacheError(f"the cache {folder} cannot be made: {reason}") from error
    fingerprint.require(facts(folder), folder)
    return Cache(folder)


def facts(folder: Path) -> dict[str, Any]:
    """What a cache says of what made it; raises CacheError."""
    try:
        found: dict[str, Any] = json.loads((folder / FACTS).read_bytes())
        number = found["format"]
        parted(found["stored"])
    except OSError as error:
        raise CacheError(f"{folder} is no cache: {FACTS} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(f"{folder / FACTS} is damaged") from error
    if number != FORMAT:
        raise CacheError(f"the cache {folder} has format {number}; this hookbrew reads {FORMAT}")
    return found


def joined(part: Part, pieces: Sequence[Piece], examples: Examples) -> Tensor:
    """One part of a batch, filled up with zeros along the tokens; raises CacheError for shapes that do not fit."""
    if part.axes and examples.length:
        return spread(part, pieces, examples)
    shapes = {piece.shape[part.tokens :] for piece in pieces}
    if len(shapes) > 1:
        raise CacheError(f"{part.name!r} has several shapes in one batch: {words.several(sorted(shapes))}")
    (shape,) = shapes
    length = (examples.length or max(piece.shape[0] for piece in pieces),) if part.tokens else ()
    batch = torch.zeros(len(pieces), *length, *shape, dtype=part.torch)
    rows, unit = content(batch).reshape(len(pieces), -1), math.prod(shape) * part.torch.itemsize
    for row, (piece, span) in enumerate(zip(pieces, examples.spans, strict=True)):
        if part.tokens and examples.length and span[1] - span[0] != piece.shape[0]:
            raise CacheError(f"{part.name!r} has {piece.shape[0]} tokens, and row {row} {span[1] - span[0]}")
        start = span[0] * unit if part.tokens else 0
        rows[row, start : start + len(piece.bytes)] = piece.bytes
    return batch


def spread(part: Part, pieces: Sequence[Piece], examples: Examples) -> Tensor:
    """As `joined`, of a part with tokens in other dimensions than the first."""
    rest = {tuple(size for axis, size in enumerate(piece.shape) if axis not in part.axes) for piece in pieces}
    if len(rest) > 1:
        raise CacheError(f"{part.name!r} has several shapes in one batch: {words.several(sorted(rest))}")
    whole = [examples.length if axis in part.axes else size for axis, size in enumerate(pieces[0].shape)]
    batch = torch.zeros(len(pieces), *whole, dtype=part.torch)
    for row, (piece, span) in enumerate(zip(pieces, examples.spans, strict=True)):
        place = batch[row][inside(part, len(whole), span)]
        if tuple(place.shape) != piece.shape:
            raise CacheError(f"{part.name!r} is {piece.shape}, and row {row} has {span[1] - span[0]} tokens")
        place.copy_(torch.from_numpy(piece.bytes.copy()).view(part.torch).view(piece.shape))
    return batch
