"""A checked experiment becomes models, data, taps and objective: level 3 of `check`, and the loop over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import torch
from torch import nn

from hookbrew import factory, words
from hookbrew.config import Experiment, Factory, Merge
from hookbrew.distillation import Distillation, Fitting
from hookbrew.errors import ConfigError, Problem
from hookbrew.loop import Batch, Chain, Feed, Loader, Loop, Pad, chosen, mix
from hookbrew.objective import TASK, Names, Teachers, parted
from hookbrew.operate import operated
from hookbrew.plan import place
from hookbrew.plugin import Catalogue
from hookbrew.ranks import shard, world
from hookbrew.request import Task

Shelf = dict[str, nn.Module]
"""The teachers of several stages, by all that they are made of."""


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
    distillation = distilled(experiment, catalogue, student, {} if teachers is None else teachers)
    for task, loader in feeds.items():
        objective = distillation.objective.parts[task]
        loader.index = objective.names.index if objective.indexed else None
    mixed = distillation.mixed(feeds, experiment.train)
    evaluate = Chain(others) if experiment.tasks and others else next(iter(others.values()), None)
    first = distillation.measure(mixed, experiment.train, world().size)
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
    )


def require_labels(experiment: Experiment, batch: Batch) -> None:
    """Raise ConfigError when a batch of the evaluation data lacks labels."""
    task = batch[TASK] if experiment.tasks else ""
    data, part = experiment.parts[task].data, parted(batch, "student")
    for key in [data.labels] if isinstance(data.labels, str) else data.labels:
        if key not in part:
            message = f"callback 'evaluate' needs labels, and the batch has no key {key!r}; {words.hint(key, part)}"
            raise ConfigError([Problem(f"{place(task)}data.evaluate", message)])


def feed(experiment: Experiment, task: str, which: str) -> Loader:
    """The batches of a task's `train`, in the order of the seed, or of its `evaluate`, in their own."""
    data, at = experiment.parts[task].data, place(task)
    training = which == "train"
    pad = Pad(data.pad, data.fields)
    return Loader(
        factory.build(getattr(data, which), f"{at}data.{which}"),
        batch_size=data.batch_size if training else data.evaluate_batch_size or data.batch_size,
        seed=experiment.seed if training and data.shuffle else None,
        collate=pad if data.collate is None else factory.build(data.collate, f"{at}data.collate"),
        fields=data.fields,
        workers=data.workers,
        ranks=world() if training else None,
        pin=chosen(experiment.train.device).type == "cuda",
    )


def distilled(experiment: Experiment, catalogue: Catalogue, student: nn.Module | None, shelf: Shelf) -> Distillation:
    """All models, and the losses between them."""
    teachers = {task: taught(experiment, task, shelf) for task in experiment.parts}
    if student is None:
        made = operated(experiment, model(experiment, experiment.student, "student"), "student")
        student = spread(experiment, made, "student", "both")
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


def taught(experiment: Experiment, task: str, shelf: Shelf) -> Teachers:
    """The teacher of a task, several by name, or None."""
    part, at = experiment.parts[task], place(task)
    if part.teacher is not None:
        return frozen(experiment, part.teacher, f"{at}teacher", shelf)
    return {
        name: frozen(experiment, made, f"{at}teachers.{name}", shelf) for name, made in (part.teachers or {}).items()
    } or None


def frozen(experiment: Experiment, made: Factory, path: str, shelf: Shelf) -> nn.Module:
    """A teacher; the one on the shelf if there is one that is the same: nobody changes it, and two are twice as large.

    The same is what has the same place, seed and arguments to the letter, so that its random weights are equal too.
    """
    known = f"{experiment.seed} {path} {made!r}"
    if known not in shelf:
        shelf[known] = spread(experiment, operated(experiment, model(experiment, made, path), path), "both")
    return shelf[known]


def spread(experiment: Experiment, made: nn.Module, *shards: str) -> nn.Module:
    """A model, shared out over several processes if `train.shard` is one of these.

    Raises ConfigError for one that cannot be, also where one process alone checks it.
    """
    if experiment.train.shard in shards:
        for name, parameter in made.named_parameters():
            if not parameter.dim():
                message = f"{name} of {type(made).__name__} is a single number, which FSDP2 cannot share out"
                raise ConfigError([Problem("train.shard", f"{message}; give it one dimension: torch.ones(1)")])
        if world().size > 1:
            shard(made.to(chosen(experiment.train.device)))
    return made


def model(experiment: Experiment, made: Factory, path: str) -> nn.Module:
    """A model, its weights drawn from a seed of its own; path: where it stands in the configuration."""
    torch.manual_seed(mix(experiment.seed, path))
    built = factory.build(made, path)
    if not isinstance(built, nn.Module):
        message = f"{made.factory} gave a {type(built).__name__}; expected a torch module"
        raise ConfigError([Problem(f"{path}.factory", message)])
    return built


def watching(config: Experiment) -> Iterator[tuple[str, object]]:
    """The callbacks of the edits of the student that go on in the run."""
    for edit in config.surgery:
        watch = getattr(edit.options, "watch", None)
        if edit.model == "student" and watch is not None and (made := watch()) is not None:
            yield edit.type, made


def looped(prepared: Prepared, where: Path | None) -> Loop:
    """The loop of a prepared run, its optimizer and callbacks made and checked; where: the run folder."""
    config, distillation = prepared.experiment, prepared.distillation
    schedule = config.lr_schedule
    fitting = Fitting(
        train=config.train,
        optimizer=factory.optimizer(config.optimizer, distillation.student.parameters()),
        rate=None if schedule is None else schedule.options.build(),
        evaluate=prepared.evaluate,
        callbacks=[*watching(config), *((component.type, component.options.build()) for component in config.callbacks)],
        folder=where,
    )
    return distillation.loop(prepared.feed, fitting)
