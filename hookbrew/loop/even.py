"""What loaders that users made give to several processes: as many batches each, and one evaluation."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from hookbrew import words
from hookbrew.errors import DataError
from hookbrew.loop.batch import Batch, digest
from hookbrew.loop.data import Feed, Given
from hookbrew.loop.mixture import Mixture
from hookbrew.ranks import Ranks

log = logging.getLogger("hookbrew")


def require_even(feed: Feed, ranks: Ranks) -> None:
    """Raise DataError unless all processes have as many batches in an epoch: they would wait for each other.

    That each goes through the whole dataset is no error, and rarely meant: it is told as a warning of the log.
    """
    if ranks.size > 1 and isinstance(feed, Mixture):
        feed.shares = ranks.said(feed.shares)  # each draws the same tasks, however many samples its own part has
        for part in feed.parts:
            require_even(part, ranks)
    if ranks.size == 1 or not isinstance(feed, Given):
        return
    lengths = ranks.each(feed.length)
    if len(set(lengths)) > 1:
        raise DataError(
            f"the processes have {words.several(map(str, lengths))} batches in an epoch, and would wait for each "
            "other; give all the same number, as torch's DistributedSampler does"
        )
    if feed.whole:
        log.warning("each process goes through the whole dataset; give its DataLoader a DistributedSampler")


def abreast(groups: Iterator[list[Batch]], feed: Feed, ranks: Ranks) -> Iterator[list[Batch]]:
    """The groups of an epoch, as many in all processes: where lengths are not known, the first that ends ends it."""
    if ranks.size == 1 or not isinstance(feed, Given) or feed.length is not None:
        yield from groups
        return
    while True:
        group = next(groups, None)
        if ranks.most([int(group is None)])[0] or group is None:
            return
        yield group


def require_same(batches: Sequence[Batch], ranks: Ranks) -> None:
    """Raise DataError unless the evaluation begins with the same batch in all processes, which share out its rows."""
    if ranks.size > 1 and len(set(ranks.each(digest(batches)))) > 1:
        message = "the evaluation data is another in each process; give all of it to each: they share out its rows"
        raise DataError(message)
