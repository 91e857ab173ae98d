"""How `fit` trains, and what it is told that nothing would read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from hookbrew.cache import Lessons
from hookbrew.config import EVALUATED, Cache, Train, structure_train, unkept
from hookbrew.errors import ConfigError, Problem
from hookbrew.loop import Feed
from hookbrew.progress import Schedule
from hookbrew.request import Task

OWN = ("optimizer", "lr_schedule", "evaluate", "callbacks", "output", "resume", "cache")
"""What `fit` is told besides the keys of `[train]`."""
UNGIVEN = "there is no evaluation data: give it with evaluate="


@attrs.define(kw_only=True)
class Fitting:
    """How `fit` trains: the keys of `[train]`, and what only Python can give."""

    train: Train
    optimizer: torch.optim.Optimizer | None = None
    rate: Schedule | LRScheduler | None = None
    evaluate: Feed | None = None
    callbacks: Sequence[tuple[str, object]] = ()
    lessons: Lessons | None = None
    """The teachers with their caches, open while it trains."""
    folder: Path | None = None
    origin: str | None = None
    """Where the teacher stands in a configuration that the student was made out of."""


def lasting(student: nn.Module, table: Mapping[str, Any]) -> Train:
    """The keys of `[train]`, on the student's device if they name none; raises ConfigError with all that is wrong."""
    if (table["epochs"] is None) == (table["steps"] is None):
        raise ConfigError([Problem("fit", "the length is missing, or given twice: write either epochs or steps")])
    here = next((str(p.device) for p in student.parameters()), "cpu")
    return structure_train({"device": here, **table}, also=OWN)


def require_read(fitting: Fitting, cache: Cache | None, tasks: Mapping[str, Task], *, augmented: bool) -> None:
    """Raise ConfigError for what nothing would read, or that cannot hold together, with all of it.

    tasks: by name, which the only one lacks. augmented: whether there are augments.
    """
    problems = [*unevaluated(fitting)]
    if fitting.train.tau is not None and "" in tasks:
        problems.append(Problem("tau", "there are no tasks to draw from", "fit"))
    if cache is not None:
        taught = any(task.models for task in tasks.values())
        problems += unkept(cache, fitting.train, taught=taught, augmented=augmented)
    if problems:
        raise ConfigError(problems)


def unevaluated(fitting: Fitting) -> Iterator[Problem]:
    """What is said about evaluating when there is nothing to evaluate on."""
    if fitting.evaluate is None:
        if fitting.train.evaluate_every is not None:
            yield Problem("evaluate_every", UNGIVEN, "fit")
        named = dict.fromkeys(name for name, _ in fitting.callbacks if name in EVALUATED)
        yield from (Problem(f"callback {name!r}", UNGIVEN, "fit") for name in named)
