"""A checked experiment becomes models, data, taps and objective: level 3 of `check`, and the loop over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import torch
from torch import nn

from hookbrew import factory
from hookbrew.cache import Lessons
from hookbrew.config import Derived, Experiment, Merge
from hookbrew.distillation import Distillation
from hookbrew.feeds import feed, require_labels
from hookbrew.fitting import Fitting
from hookbrew.loop import Batch, Chain, Feed, Loader, Loop, mix
from hookbrew.models import Shelf, require_apart, spread, taught, trained, watch
from hookbrew.objective import Names
from hookbrew.plugin import Catalogue
from hookbrew.ranks import world
from hookbrew.request import Task


@attrs.frozen(kw_only=True)
class Prepared:
    """A run that passed level 3: nothing but time stands between it and a student."""

    experiment: Experiment
    distillation: Distillation
    feed: Feed
    evaluate: Feed | None
    loaders: Sequence[Loader]
    """Whatever of both loads data."""
    first: Sequence[Batch]
    """The first batch of the training, or that of each task."""
    lessons: Lessons | None = None
    """The teachers with their caches, if there is a `[cache]`."""

    def close(self) -> None:
        """End the processes that load data."""
        for loader in self.loaders:
            loader.close()


def prepare(
    experiment: Experiment, catalogue: Catalogue, student: nn.Module | None = None, teachers: Shelf | None = None
) -> Prepared:
    """Level 3: build models and data, resolve selectors, measure shapes on the first batch.

    student: the model to train, if not the one that the experiment describes. teachers: those of other stages, to
    which these are added; one that says the same is not built again.
    """
    feeds = {task: feed(experiment, task, "train") for task in experiment.parts}
    others = {
        t: feed(experiment, t, "evaluate") for t, part in experiment.parts.items() if part.data.evaluate is not None
    }
    shelf: Shelf = {} if teachers is None else teachers
    if student is None:
        whole = trained(experiment, shelf, feeds)  # before a teacher is shared out over processes
        student = spread(experiment, whole, "student", "both")
    distillation = distilled(experiment, catalogue, student, shelf)
    for task, loader in feeds.items():
        objective = distillation.objective.parts[task]
        loader.index = objective.names.index if objective.indexed else None
    mixed = distillation.mixed(feeds, experiment.train)
    evaluate = Chain(others) if experiment.tasks and others else next(iter(others.values()), None)
    first, lessons = distillation.measure(mixed, experiment.train, experiment.cache, parts=world().size)
    if evaluate is not None:
        for batch in distillation.rehearse(evaluate, experiment.train):
            require_labels(experiment, batch)
    loaders = [*feeds.values(), *others.values()]
    return Prepared(
        experiment=experiment,
        distillation=distillation,
        feed=mixed,
        evaluate=evaluate,
        loaders=loaders,
        first=first,
        lessons=lessons,
    )


def distilled(experiment: Experiment, catalogue: Catalogue, student: nn.Module, shelf: Shelf) -> Distillation:
    """All models, and the losses between them."""
    teachers = {task: taught(experiment, task, shelf) for task in experiment.parts}
    require_apart(experiment, student, shelf)
    torch.manual_seed(mix(experiment.seed, "projections"))
    tasks = {
        task: Task(
            teacher=teachers[task],
            losses=part.losses,
            merge=part.merge or Merge(),
            fields=part.data.fields,
            **{field.name: getattr(part.data, field.name) for field in attrs.fields(Names)},
        )
        for task, part in experiment.parts.items()
    }
    return Distillation(
        None, student, tasks=tasks, augments=experiment.augments, seed=experiment.seed, catalogue=catalogue
    )


def watching(config: Experiment) -> Iterator[tuple[str, object]]:
    """The callbacks of the edits of the student that go on in the run."""
    for edit in config.surgery:
        if edit.model == "student" and (made := watch(edit)) is not None:
            yield edit.type, made


def looped(prepared: Prepared, where: Path | None) -> Loop:
    """The loop of a prepared run, its optimizer and callbacks made and checked; where: the run folder."""
    config, distillation = prepared.experiment, prepared.distillation
    schedule = config.lr_schedule
    own = ((component.type, component.options.build()) for component in config.callbacks)
    fitting = Fitting(
        train=config.train,
        optimizer=factory.optimizer(config.optimizer, distillation.student.parameters()),
        rate=None if schedule is None else schedule.options.build(),
        evaluate=prepared.evaluate,
        lessons=prepared.lessons,
        callbacks=[*watching(config), *own],
        folder=where,
        origin=config.student.source if isinstance(config.student, Derived) else None,
    )
    return distillation.loop(prepared.feed, fitting)
