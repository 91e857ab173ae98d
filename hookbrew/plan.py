"""A file becomes the checked experiments of its stages, with the callbacks that every run has; the levels of `check`:

1 names     every table and name is known, plugins are there                  no torch
2 options   named components are loaded, their options checked
3 build     models and data are made, every selector resolved, shapes compared on one batch
4 step      one forward and backward: every loss is finite and reaches the student

Here are 1 and 2.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs

from hookbrew import words
from hookbrew.config import (
    EVALUATED,
    Component,
    Derived,
    Document,
    Experiment,
    Factory,
    Train,
    check_names,
    staged,
    structure,
    unkept,
    write,
    write_stages,
)
from hookbrew.errors import ConfigError, Problem
from hookbrew.plugin import Catalogue

log = logging.getLogger("hookbrew")
STANDARD = ("metrics", "progress", "weights", "checkpoint")
"""Callbacks that every run has, named or not; naming one gives it options."""


def resolved(document: Document, catalogue: Catalogue) -> Experiment:
    """Levels 1 and 2 of a file as it is; what `extends` or -s replaced whole is told as a warning of the log."""
    check_names(document, catalogue)
    for note in document.dropped:
        log.warning("note: %s", note)
    return structure(document, catalogue)


def experiment(document: Document, catalogue: Catalogue, *, quiet: bool = False) -> Experiment:
    """Levels 1 and 2: the checked experiment, with the callbacks that every run has.

    quiet leaves the progress display out. Raises ConfigError with all that is wrong.
    """
    made = resolved(document, catalogue)
    if quiet:
        made = attrs.evolve(made, callbacks=[c for c in made.callbacks if c.type != "progress"])
    require_read(made)
    given = [component.type for component in made.callbacks]
    wanted = [name for name in STANDARD if name not in given and not (quiet and name == "progress")]
    if any(part.data.evaluate is not None for part in made.parts.values()) and "evaluate" not in given:
        wanted.insert(0, "evaluate")
    added = [Component(type=name, options=catalogue.load("callbacks", name)()) for name in wanted]
    return attrs.evolve(made, callbacks=[*made.callbacks, *added])


def place(task: str) -> str:
    """Where the tables of a task stand in a configuration."""
    return f"tasks.{task}." if task else ""


def require_read(experiment: Experiment) -> None:
    """Raise ConfigError for keys that nothing would read, or that cannot hold together."""
    problems = [*clashes(experiment.train)]
    if experiment.cache is not None:
        taught, augmented = bool(teachers(experiment)), bool(experiment.augments)
        problems += unkept(experiment.cache, experiment.train, taught=taught, augmented=augmented)
    for task, part in experiment.parts.items():
        at, data = place(task), part.data
        if data.collate is not None and data.pad:
            message = "data.collate makes the batches, and pads them itself; leave one of them out"
            problems.append(Problem(f"{at}data.pad", message))
        if data.evaluate is None and data.evaluate_batch_size:
            problems.append(Problem(f"{at}data.evaluate_batch_size", f"there is no {at}data.evaluate"))
    if all(part.data.evaluate is None for part in experiment.parts.values()):
        unread = {"train.evaluate_every": experiment.train.evaluate_every}
        named = {f"callbacks[{i}]": evaluated(c) for i, c in enumerate(experiment.callbacks)}
        problems += [Problem(path, "there is no data.evaluate") for path, given in (unread | named).items() if given]
    if problems:
        raise ConfigError(problems)


def clashes(train: Train) -> Iterator[Problem]:
    """What cannot be done to a model that is sharded, also where one process alone checks it."""
    shards = {"none": (), "student": ("student",), "both": ("student", "teacher")}[train.shard]
    if shards and train.out_of_memory == "halve":
        yield Problem("train.out_of_memory", "'halve' is not for a sharded student; leave train.shard out, or this")
    for side in shards:
        if train.compile in (side, "both"):
            yield Problem("train.compile", f"a sharded {side} is not compiled; leave train.shard out, or this")


def evaluated(callback: Component) -> bool:
    """Whether a callback goes by evaluations."""
    return callback.type in EVALUATED or bool(getattr(callback.options, "keep_best", None))


@contextmanager
def placed(document: Document) -> Iterator[None]:
    """Mistakes that show up late are reported with their place in the file, like all others; and with their stage."""
    try:
        yield
    except Exception as error:
        if document.stage:
            error.add_note(f"raised in stage {document.stage!r}")
        if not isinstance(error, ConfigError):
            raise
        made = ConfigError([attrs.evolve(p, place=p.place or document.locate(p.path)) for p in error.problems])
        for note in error.__notes__ if hasattr(error, "__notes__") else ():
            made.add_note(note)
        raise made from error


@attrs.frozen
class Stage:
    """A document with its experiment, checked; the only one of a run that has no `[[stages]]`."""

    name: str
    document: Document
    experiment: Experiment


def planned(document: Document, catalogue: Catalogue, *, quiet: bool = False) -> list[Stage]:
    """Levels 1 and 2 of all stages; raises ConfigError with all that is wrong with the first that is."""
    plan = []
    for name, part in staged(document).items():
        with placed(part):
            plan.append(Stage(name, part, experiment(part, catalogue, quiet=quiet)))
            require_place(plan)
            require_source(plan[0].experiment)
    require_models(plan)
    return plan


def teachers(experiment: Experiment) -> dict[str, tuple[str, Factory]]:
    """All teachers by where they stand, as `tasks.trec.teachers.large`, each with its task."""
    found = {}
    for task, part in experiment.parts.items():
        if part.teacher is not None:
            found[f"{place(task)}teacher"] = (task, part.teacher)
        found |= {f"{place(task)}teachers.{name}": (task, made) for name, made in (part.teachers or {}).items()}
    return found


def require_source(experiment: Experiment) -> None:
    """Raise ConfigError for a student made from a teacher that is not there; the first stage makes it."""
    there = teachers(experiment)
    if isinstance(experiment.student, Derived) and (source := experiment.student.source) not in there:
        message = f"there is no {source!r} in this file; {words.hint(source, there)}"
        raise ConfigError([Problem("student.from", message)])


def require_place(plan: Sequence[Stage]) -> None:
    """Raise ConfigError for a stage on another device, or sharded otherwise, than the first: all are made before it."""
    for key, what in {"device": "are on one device", "shard": "are sharded alike"}.items():
        first, last = (getattr(stage.experiment.train, key) for stage in (plan[0], plan[-1]))
        if first != last:
            raise ConfigError([Problem(f"train.{key}", f"all stages {what}, and the first has {first!r}")])


def models(experiment: Experiment) -> Iterator[str]:
    """The places of all models: `student`, `teacher`, `tasks.trec.teachers.large`."""
    yield "student"
    for task, part in experiment.parts.items():
        if part.teacher is not None:
            yield f"{place(task)}teacher"
        yield from (f"{place(task)}teachers.{name}" for name in part.teachers or {})


def require_models(plan: Sequence[Stage]) -> None:
    """Raise ConfigError for an edit of a model that no stage has."""
    known = [name for stage in plan for name in models(stage.experiment)]
    with placed(plan[0].document):
        for index, edit in enumerate(plan[0].experiment.surgery):
            if edit.model not in known:
                message = f"there is no model {edit.model!r}; {words.hint(edit.model, known)}"
                raise ConfigError([Problem(f"surgery[{index}].model", message)])
            if len(plan) > 1 and hasattr(edit.options, "watch") and edit.options.watch() is not None:
                message = f"edit {edit.type!r} goes on to the end of a run, and there are several stages"
                raise ConfigError([Problem(f"surgery[{index}]", f"{message}; write merge = false")])


def root(plan: Sequence[Stage]) -> Path:
    """The folder of the whole run."""
    first = plan[0].experiment.output
    return first.parent if plan[0].name else first


def written(plan: Sequence[Stage]) -> str:
    """The configuration with every default explicit."""
    return write_stages({s.name: s.experiment for s in plan}) if plan[0].name else write(plan[0].experiment)
