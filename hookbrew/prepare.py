"""A checked experiment becomes models, data, taps and objective: level 3 of `check`, and the loop over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from hookbrew import factory, words
from hookbrew.cache import Attending, Lessons, attended
from hookbrew.config import Derived, Edit, Experiment, Factory, Merge, Train
from hookbrew.config.keys import dotted
from hookbrew.distillation import Distillation, Fitting
from hookbrew.errors import ConfigError, Problem, SelectorError, SurgeryError
from hookbrew.loop import Batch, Chain, Feed, Loader, Loop, Pad, chosen, mix, moved, size_of, split
from hookbrew.lower import lowered
from hookbrew.objective import TASK, Names, Teachers, accepted, parted
from hookbrew.operate import operated
from hookbrew.plan import place
from hookbrew.plan import teachers as sources
from hookbrew.plugin import Catalogue
from hookbrew.ranks import shard, world
from hookbrew.request import Task
from hookbrew.surgery import student as derive

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
    first = distillation.measure(mixed, measured(experiment), world().size)
    lessons = None if experiment.cache is None else stored(experiment, distillation, first)
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


def measured(experiment: Experiment) -> Train:
    """[train], with whole logits where they are kept: what is in a cache may not depend on how large a batch is."""
    train = experiment.train
    return attrs.evolve(train, chunked=False) if experiment.cache is not None and train.chunked == "auto" else train


def stored(experiment: Experiment, distillation: Distillation, first: Sequence[Batch]) -> Lessons:
    """The teachers with their caches, looked at on what each process has of the first batches; nothing is written."""
    assert experiment.cache is not None
    device = chosen(experiment.train.device)
    parts = [moved(next(split(batch, -(-size_of(batch) // world().size))), device) for batch in first]
    precision = experiment.train.precision
    return attended(experiment.cache, distillation.objective, parts, device=device, precision=precision)


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
    data, training = experiment.parts[task].data, which == "train"
    samples = factory.build(getattr(data, which), f"{place(task)}data.{which}")
    size = data.batch_size if training else data.evaluate_batch_size or data.batch_size
    seed = experiment.seed if training and data.shuffle else None
    return loader(experiment, task, samples, size=size, seed=seed, training=training)


def loader(
    experiment: Experiment, task: str, samples: Any, *, size: int, seed: int | None, training: bool = False
) -> Loader:
    """The batches that a task makes of samples, `size` of them each; training: shared by several processes."""
    data, at = experiment.parts[task].data, place(task)
    pad = Pad(data.pad, data.fields)
    return Loader(
        samples,
        batch_size=size,
        seed=seed,
        collate=pad if data.collate is None else factory.build(data.collate, f"{at}data.collate"),
        fields=data.fields,
        workers=data.workers,
        ranks=world() if training else None,
        pin=chosen(experiment.train.device).type == "cuda",
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
    known = label(experiment, made, path)
    if known not in shelf:
        shelf[known] = learned_from(experiment, model(experiment, made, path))
    return shelf[known]


def label(experiment: Experiment, made: Factory, path: str) -> str:
    """All that a teacher is made of."""
    return f"{experiment.seed} {experiment.train.teacher_precision} {path} {made!r}"


def learned_from(experiment: Experiment, teacher: nn.Module) -> nn.Module:
    """A teacher as the training has it: in the precision that is asked for, and shared out."""
    return spread(experiment, lowered(teacher, experiment.train.teacher_precision), "both")


def require_apart(experiment: Experiment, student: nn.Module, shelf: Shelf) -> None:
    """Raise ConfigError where the student has weights of a teacher that were cast with it."""
    ours = {id(parameter) for parameter in student.parameters()}
    if experiment.train.teacher_precision != "same" and any(
        id(p) in ours for t in shelf.values() for p in t.parameters()
    ):
        message = "the student has weights of a teacher, which would be cast too; leave this key out"
        raise ConfigError([Problem("train.teacher_precision", message)])


def trained(experiment: Experiment, shelf: Shelf, feeds: Mapping[str, Loader] | None = None) -> nn.Module:
    """The student, whole: of its factory, or made out of its teacher, which comes onto the shelf.

    feeds: the training data of each task, if it is there already. All processes make the same student. Raises
    ConfigError when it cannot be made.
    """
    config = experiment.student
    if isinstance(config, Factory):
        return model(experiment, config, "student")
    task, made = sources(experiment)[config.source]
    teacher = model(experiment, made, config.source)
    vocabulary = factory.ids(config.vocabulary, "student.vocabulary")
    width = None if config.width is None else attrs.asdict(config.width, filter=lambda _, value: value is not None)
    options = {"keep": config.keep, "width": width, "vocabulary": vocabulary, "rank": config.rank}
    batches = sample(experiment, task, teacher, feeds or {}) if config.measured else None
    try:
        student = derive(teacher, **options, batches=batches)
    except (SelectorError, SurgeryError) as error:
        raise ConfigError([misplaced(str(error), options)]) from error
    shelf[label(experiment, made, config.source)] = learned_from(experiment, teacher)
    return operated(experiment, student, "student")


def misplaced(message: str, options: Mapping[str, Any]) -> Problem:
    """The problem of a student that cannot be made, at the key that the message begins with, and at the path in it."""
    key, _, rest = message.partition(": ")
    if key not in options:
        return Problem("student", message)
    paths = [path for path in options[key] if isinstance(path, str) and repr(path) in rest]
    return Problem(dotted(("student", key, *paths[:1])), rest)


def sample(experiment: Experiment, task: str, teacher: nn.Module, feeds: Mapping[str, Loader]) -> list[Batch]:
    """The batches that a student is measured on, as the teacher takes them; it goes to the device of the training."""
    assert isinstance(experiment.student, Derived)
    device, data = chosen(experiment.train.device), experiment.parts[task].data
    name = experiment.student.source.rpartition(".")[2]
    loader = feeds.get(task) or feed(experiment, task, "train")
    parts = [parted(batch, "teacher", name) for batch in loader.some(experiment.student.batches)]
    if task not in feeds:
        loader.close()
    labels = (data.labels,) if isinstance(data.labels, str) else tuple(data.labels)
    teacher.to(device)
    return [moved({key: part[key] for key in accepted(teacher, part, labels)}, device) for part in parts]


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


def model(experiment: Experiment, made: Factory | Derived, path: str) -> nn.Module:
    """A model, edited as `[[surgery]]` says, its weights drawn from a seed of its own.

    path: where it stands in the configuration.
    """
    if isinstance(made, Derived):
        return trained(experiment, {})
    torch.manual_seed(mix(experiment.seed, path))
    built = factory.build(made, path)
    if not isinstance(built, nn.Module):
        message = f"{made.factory} gave a {type(built).__name__}; expected a torch module"
        raise ConfigError([Problem(f"{path}.factory", message)])
    return operated(experiment, built, path)


def merged(config: Experiment) -> Experiment:
    """The experiment whose student is built as the one that is saved: without edits that went into the weights."""
    passing = [edit for edit in config.surgery if edit.model == "student" and watch(edit) is not None]
    return attrs.evolve(config, surgery=[edit for edit in config.surgery if edit not in passing])


def watch(edit: Edit) -> object | None:
    """The callback of an edit that goes on in the run, which merges it into the weights at the end."""
    make = getattr(edit.options, "watch", None)
    return None if make is None else make()


def watching(config: Experiment) -> Iterator[tuple[str, object]]:
    """The callbacks of the edits of the student that go on in the run."""
    for edit in config.surgery:
        if edit.model == "student" and (made := watch(edit)) is not None:
            yield edit.type, made


def looped(prepared: Prepared, where: Path | None) -> Loop:
    """The loop of a prepared run, its optimizer and callbacks made and checked; where: the run folder."""
    config, distillation = prepared.experiment, prepared.distillation
    schedule = config.lr_schedule
    lessons = prepared.lessons
    attending = [] if lessons is None else [("cache", Attending(lessons))]
    own = ((component.type, component.options.build()) for component in config.callbacks)
    fitting = Fitting(
        train=config.train,
        optimizer=factory.optimizer(config.optimizer, distillation.student.parameters()),
        rate=None if schedule is None else schedule.options.build(),
        evaluate=prepared.evaluate,
        callbacks=[*attending, *watching(config), *own],
        folder=where,
        origin=config.student.source if isinstance(config.student, Derived) else None,
    )
    loop = distillation.loop(prepared.feed, fitting)
    if lessons is not None:
        loop.augment = lessons.supplied(loop.augment)
    return loop
