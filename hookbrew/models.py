"""The models of an experiment: teachers, and the student of its factory or out of its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import nn

from hookbrew import factory
from hookbrew.config import Derived, Edit, Experiment, Factory
from hookbrew.config.keys import dotted
from hookbrew.errors import ConfigError, Problem, SelectorError, SurgeryError
from hookbrew.feeds import feed
from hookbrew.loop import Batch, Loader, chosen, mix, moved
from hookbrew.lower import lowered
from hookbrew.objective import Teachers, accepted, parted
from hookbrew.operate import operated
from hookbrew.plan import place
from hookbrew.plan import teachers as sources
from hookbrew.ranks import shard, world
from hookbrew.surgery import student as derive

Shelf = dict[str, nn.Module]
"""The teachers of several stages, by all that they are made of."""


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
