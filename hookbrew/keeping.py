"""`hookbrew cache`: the teachers of a run say all they have to say of its training data, and it is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch

from hookbrew.cache import Lesson, Lessons
from hookbrew.config import read
from hookbrew.errors import ConfigError, Problem
from hookbrew.loop import Batch, autocast, chosen, moved
from hookbrew.modes import evaluating
from hookbrew.objective import TASK
from hookbrew.plan import Stage, place, placed, planned
from hookbrew.plugin import Catalogue
from hookbrew.prepare import Prepared
from hookbrew.ranks import Ranks
from hookbrew.run import built, together

Track = Callable[[Iterable[Batch], int, str], Iterable[Batch]]
"""Batches, how many they are and what they are, to the same batches."""


@attrs.frozen
class Kept:
    """What was done for one teacher, by all processes together."""

    at: str
    """Where it stands in the configuration."""
    folder: Path
    fresh: int
    """Examples that were added."""


@contextmanager
def cached(
    path: str | Path, sets: Sequence[str], catalogue: Catalogue
) -> Iterator[tuple[Ranks, list[tuple[Stage, Prepared, Lessons]]]]:
    """The stages of a configuration file that have a cache, with their models, data and teachers.

    Raises ConfigError and what `run` would raise before it trains, and CacheError for a cache of something else.
    """
    plan = planned(read(path, sets), catalogue, quiet=True)
    missing = plan[0].document
    plan = [opening(stage) for stage in plan if stage.experiment.cache is not None]
    if not plan:
        with placed(missing):
            raise ConfigError([Problem("cache", 'there is none: write [cache] with folder = "..."')])
    with together(plan) as ranks, built(plan, catalogue) as made:
        found = []
        for stage, prepared in zip(plan, made, strict=True):
            assert prepared.lessons is not None
            found.append((stage, prepared, prepared.lessons))
        yield ranks, found


def opening(stage: Stage) -> Stage:
    """A stage whose cache may be added to, whatever its runs may do."""
    assert stage.experiment.cache is not None
    cache = attrs.evolve(stage.experiment.cache, missing="build")
    return attrs.evolve(stage, experiment=attrs.evolve(stage.experiment, cache=cache))


def keep(path: str | Path, sets: Sequence[str] = (), *, catalogue: Catalogue, track: Track) -> list[Kept]:
    """Run the teachers of a configuration file on all its training data, but for what is in the cache already.

    What was kept stays, whatever ends this: to call it again goes on. Raises what `cached` does, and CacheError for a
    disk that is full.
    """
    told = []
    with cached(path, sets, catalogue) as (ranks, stages):
        for stage, prepared, lessons in stages:
            with placed(stage.document):
                require_plain(stage)
                filled(prepared, lessons, ranks, track)
            told += [Kept(each.seat.at, each.folder, ranks.sum(each.fresh)) for each in lessons.every]
    return told


def require_plain(stage: Stage) -> None:
    """Raise ConfigError for augments: what they will make of the data is not known before."""
    if stage.experiment.augments:
        message = "what they make of the data is not known before the training; leave them out, or let the run build it"
        raise ConfigError([Problem("augments", message)])


def filled(prepared: Prepared, lessons: Lessons, ranks: Ranks, track: Track) -> None:
    """Keep what the teachers of one stage say of the training data of each task."""
    experiment, objective = prepared.experiment, prepared.distillation.objective
    device, precision = chosen(experiment.train.device), experiment.train.precision
    models = [lesson.seat.model for lesson in lessons.every]
    with objective.attached(), evaluating(*models), autocast(precision, device), torch.no_grad():
        for lesson in lessons.every:
            lesson.strict = True
        try:
            lessons.open(ranks)
            for task, loader in zip(experiment.parts, prepared.loaders, strict=False):  # those of the evaluation follow
                batches = loader.epoch(1)
                for batch in track(batches, len(loader), f"{place(task)}data.train"):
                    said({**batch, TASK: task} if experiment.tasks else batch, lessons, device)
        finally:
            lessons.close()


def said(batch: Batch, lessons: Lessons, device: torch.device) -> None:
    """Run the teachers that have not said all of a batch."""
    lacking = [lesson for lesson in lessons.own(batch).values() if lesson.absent(batch)]
    there = moved(batch, device) if lacking else batch
    for lesson in lacking:
        lesson.ask(there)


def matching(path: str | Path, sets: Sequence[str] = (), *, catalogue: Catalogue) -> list[Lesson]:
    """The teachers of a configuration file with their caches, each of which is of this teacher, or not there yet.

    Raises what `cached` does.
    """
    with cached(path, sets, catalogue) as (_, stages):
        return [lesson for _, _, lessons in stages for lesson in lessons.every]


def summed(folder: Path) -> dict[str, Any]:
    """What there is in a folder of a cache; raises CacheError for none."""
    from hookbrew.cache import Cache

    found = Cache(folder)
    made = found.facts
    return {
        "folder": str(folder),
        "examples": len(found),
        "bytes": found.size,
        "shards": len(found.shards),
        "cut": found.cut,
        "damaged": found.wrong,
        **{key: made[key] for key in ("teacher", "weights", "tokenizer", "precision", "taps", "stored")},
    }
