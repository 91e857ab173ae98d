"""`[cache]`: what of the teachers is kept on the disk, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import attrs

from hookbrew.options import at_least


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
