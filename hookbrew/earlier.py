"""What an earlier `fit` left in its folder, and whether this one can go on from there."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hookbrew import folder
from hookbrew.errors import ConfigError, Problem, ResumeError
from hookbrew.loop import Feed, Given, Store
from hookbrew.ranks import Ranks
from hookbrew.request import Request
from hookbrew.store import Checkpoint

log = logging.getLogger("hookbrew")


def kept(output: Path | None, callbacks: Sequence[Request | object]) -> Path:
    """Where a fit keeps its checkpoints; raises ConfigError for one that has no folder, or makes none."""
    tables = [item.table for item in callbacks if isinstance(item, Request) and item.table["type"] == "checkpoint"]
    if output is None or not tables:
        needs = "output=, and callbacks=[hb.callback('checkpoint')]"
        raise ConfigError([Problem("resume", f"there are no checkpoints to go on from: it needs {needs}", "fit")])
    return output / str(tables[0].get("folder", "checkpoints"))


def pace(feed: Feed, accumulate: int) -> dict[str, int | None]:
    """What steps are counted in, and so has to stay as it was."""
    length = feed.length if isinstance(feed, Given) else len(feed)
    return {"batches in an epoch": length, "train.accumulate": accumulate}


@contextmanager
def held(output: Path | None, ranks: Ranks, *, fresh: bool = False) -> Iterator[None]:
    """No other training writes into the folder meanwhile; the first of several processes holds it for all.

    fresh: whether there must be none yet. It is made if it is not there.
    """
    with ExitStack() as stack:

        def hold() -> None:
            if output is not None:
                if fresh or not output.exists():
                    folder.create(output, overwrite=False)
                stack.enter_context(folder.locked(output))

        ranks.first(hold)
        yield


def earlier(place: Path, feed: Feed, facts: Mapping[str, Any]) -> Checkpoint | None:
    """The newest checkpoint that is whole; None if there is none.

    facts: what has to be as it was. Raises ResumeError when it is not, and CheckpointError when none is whole. A loader
    that draws its own order is warned of in the middle of an epoch: it will draw another one.
    """
    found, wrong = Store(place).newest()
    for note in wrong:
        log.warning("%s; going on from an older one", note)
    if found is None:
        return None
    for name, now in facts.items():
        before = found.facts["exact"].get(name)
        if before != now:
            raise ResumeError(f"{name}: {before} before, {now} now; the place in the data is counted in batches")
    if found.facts["batches"] and isinstance(feed, Given) and feed.shuffled:
        log.warning(
            "step %d is in the middle of an epoch, whose order the DataLoader draws anew: samples of it will be "
            "repeated and left out; to avoid that, give it a sampler whose order depends on the epoch alone",
            found.step,
        )
    return found
