"""What one teacher says of examples: out of the cache where it is there, else by its forward, which is then kept.

Either way the losses read the same numbers: what a forward gives is rounded as the cache rounds it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from hookbrew.cache.cache import FACTS, Cache, facts, opened
from hookbrew.cache.fingerprint import Fingerprint
from hookbrew.cache.head import heard
from hookbrew.cache.keys import Examples, examples
from hookbrew.cache.kinds import Hidden, Kind
from hookbrew.cache.rounded import Rounded
from hookbrew.cache.writer import Writer
from hookbrew.errors import CacheError
from hookbrew.objective import Seat

log = logging.getLogger("hookbrew")


@attrs.define(eq=False, kw_only=True)
class Lesson:
    """A teacher with its cache, which is open between `open` and `close`."""

    seat: Seat
    folder: Path
    kind: Kind
    fingerprint: Fingerprint
    dtypes: Mapping[str, torch.dtype]
    """What the losses read, by canonical path, as the teacher gives it."""
    refuse: bool = False
    """Whether an example that is not there ends the run."""
    strict: bool = False
    """Whether a disk that takes no more does too."""
    fresh: int = 0
    """Examples that were added since it was opened."""
    _cache: Cache | None = None
    _writer: Writer | None = None
    _keys: dict[str, str] = attrs.field(init=False)
    """Under which key of a batch each part is handed on."""

    def __attrs_post_init__(self) -> None:
        self._keys = {part.name: f"hookbrew.cache/{self.seat.name}/{part.name}" for part in self.kind.parts}

    @property
    def there(self) -> bool:
        """Whether the folder has a cache; raises CacheError for one of something else."""
        if not (self.folder / FACTS).exists():
            return False
        self.fingerprint.require(facts(self.folder), self.folder)
        return True

    def make(self) -> None:
        """Make the folder, if it is not there; raises CacheError."""
        opened(self.folder, self.fingerprint)

    def open(self) -> None:
        """Read what is there; raises CacheError for a cache of something else."""
        self._cache = opened(self.folder, self.fingerprint)
        self._writer = None if self.refuse else self._cache.writer(self.kind)
        self.fresh = 0

    def refresh(self) -> None:
        """Look for what was added since, by this process and by others."""
        if self._cache is not None:
            self._cache.refresh()

    def close(self) -> None:
        """Let go of the files."""
        writer, self._writer, self._cache = self._writer, None, None
        if writer is not None:
            writer.close()

    def __str__(self) -> str:
        made = self.fingerprint.stored
        options = "".join(f" {name} {made[name]}" for name in ("k", "draws", "temperature", "head") if name in made)
        there = f"{len(Cache(self.folder))} examples" if self.there else "nothing yet"
        return f"{made['kind']}{options} in {self.kind.parts[0].dtype}, {there} in {self.folder}"

    def keyed(self, batch: Mapping[str, Any]) -> Examples:
        """The examples of a batch, by the content that the teacher gets."""
        return examples(self.seat.inputs(batch), self.seat.names.mask)

    def absent(self, batch: Mapping[str, Any]) -> list[int]:
        """The rows of a batch that are not in the cache."""
        assert self._cache is not None
        return self._cache.absent(self.keyed(batch))

    def supply(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """What is kept of a batch, under keys that `ask` finds in it, on the CPU; nothing if a row is not there.

        Raises CacheError for that where the teacher may not run.
        """
        assert self._cache is not None
        keyed = self.keyed(batch)
        if absent := self._cache.absent(keyed):
            if self.refuse:
                raise CacheError(
                    f"the cache {self.folder} lacks {len(absent)} of {len(keyed.keys)} examples of a batch: it was "
                    "built of other data; add them with `hookbrew cache build`, or write cache.missing = 'build'"
                )
            return {}
        return {self._keys[name]: tensor for name, tensor in self._cache.read(keyed).items()}

    def ask(self, batch: Mapping[str, Any]) -> Any:
        """Let the losses read what was supplied; else run the teacher, keep what it says, and return its output."""
        if next(iter(self._keys.values())) in batch:
            self.seat.place(self.decoded({name: batch[key] for name, key in self._keys.items()}))
            return None
        with heard(bare(self.kind)) as outputs:
            output = self.seat.run(batch)
        seen = self.seat.seen()
        made = self.kind.encode({**outputs, **({"logits": next(iter(seen.values()))} if self.named else seen)})
        if self._writer is not None:
            self.keep(self.keyed(batch), made)
        names = [part.name for part in self.kind.parts]
        self.seat.place(self.decoded(dict(zip(names, made, strict=True))))
        return output

    @property
    def named(self) -> bool:
        """Whether the kind calls its one tensor `logits`, whatever the path is that it was read by."""
        return not isinstance(bare(self.kind), Hidden)

    def decoded(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the losses read, by canonical path, out of what is kept of it."""
        found = self.kind.decode(parts)
        if self.named:
            found = {next(iter(self.dtypes)): found["logits"]}
        return {name: found[name].to(dtype) for name, dtype in self.dtypes.items()}

    def keep(self, keyed: Examples, made: list[Tensor]) -> None:
        """Write it down; a disk that takes no more is told once, and the training goes on unless it is `strict`."""
        assert self._writer is not None
        try:
            self.fresh += self._writer.keep(keyed, made)
        except CacheError as error:
            if self.strict or not self._writer.failed:
                raise
            log.warning("%s; the run goes on, and the teacher runs where nothing was kept", error)
            self._writer = None


def bare(kind: Kind) -> Kind:
    """A kind without what rounds it."""
    return kind.kind if isinstance(kind, Rounded) else kind
