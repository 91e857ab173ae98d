"""`[cache]`: what of the teachers is kept on the disk, and where."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import attrs

from hookbrew.errors import Problem
from hookbrew.options import at_least

if TYPE_CHECKING:
    from hookbrew.config.tree import Train


@attrs.frozen(kw_only=True)
class Cache:
    """`[cache]`: what the teachers said is kept in a folder, by the content of each example, and not computed again."""

    folder: Path
    """Where, relative to the file; made if it is not there. Any number of runs may use it at once."""
    kind: Literal["full", "last_hidden", "topk", "sampled"] = "full"
    """What is kept: all that the losses read of a teacher; or in place of its logits what its last layer makes them of,
    which is applied again; or the likeliest classes and the mass of the rest, all that `topk_tail` reads; or classes
    drawn from its probabilities, which stand for them in `kd_ce` without bias."""
    dtype: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    """The numbers on the disk; the shorter ones are rounded, int8 to 1/254 of the largest number of a row."""
    k: int | None = at_least(1, None)
    """Classes that `topk` keeps, as many as the losses read when left out; or draws of `sampled`, 64 when left out."""
    tokenizer: Path | None = None
    """The folder of the tokenizer that made the ids, relative to the file: when its files change, the cache is
    refused."""
    missing: Literal["build", "refuse"] = "build"
    """An example that is not there yet: the teacher runs and it is added, or the run ends."""
    augmented: bool = False
    """Keep what a teacher says of examples that `[[augments]]` made, though most of them never come again."""


def unkept(cache: Cache, train: Train, *, taught: bool, augmented: bool) -> Iterator[Problem]:
    """Why a cache cannot be used, as far as it can be said without models.

    taught: whether there is a teacher. augmented: whether there are augments.
    """
    if not taught:
        yield Problem("cache", "there is no teacher, so there is nothing to keep")
    if train.shard == "both":
        yield Problem("train.shard", "a sharded teacher cannot be told from another; with a [cache] write 'student'")
    if augmented and (cache.missing == "refuse" or not cache.augmented):
        why = "examples that augments make are new ones each time, and hardly ever in the cache"
        rest = "leave one of them out" if cache.missing == "refuse" else "cache.augmented = true keeps them nonetheless"
        yield Problem("augments", f"{why}; {rest}")
    if cache.kind == "last_hidden" and train.compile in ("teacher", "both"):
        why = "'last_hidden' listens to the head of a teacher, which is not heard in one that is compiled"
        yield Problem("train.compile", f"{why}; leave the teacher as it is, or write cache.kind = 'full'")
    if train.chunked is True and cache.kind != "full":
        why = "reads what goes into the heads, which 'full' keeps"
        yield Problem("cache.kind", f"{cache.kind!r} is for logits, and train.chunked = true {why}; write 'full'")
    if cache.augmented and not augmented:
        yield Problem("cache.augmented", "there are no augments; leave this key out")
