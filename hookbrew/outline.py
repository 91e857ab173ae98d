"""What can be tapped in a model: the models of a configuration on their own data, or one of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
from torch import nn

from hookbrew import factory, hub, words
from hookbrew.chance import kept_random
from hookbrew.config import Derived, Document, Experiment, Factory, read, staged
from hookbrew.errors import ConfigError, Problem
from hookbrew.feeds import feed
from hookbrew.loop import Chain, chosen, moved
from hookbrew.models import model
from hookbrew.modes import evaluating
from hookbrew.objective import Names, accepted, parted
from hookbrew.plan import place, placed, require_source, resolved
from hookbrew.plugin import Catalogue
from hookbrew.taps import Outline, outline


def outlined(source: str, sets: Sequence[str], sides: Sequence[str], *, catalogue: Catalogue) -> list[Outline]:
    """The outlines of `student` or `teacher` or both; of a folder or a name of transformers it is the one model.

    Raises HookbrewError as `configured` and `hub.looked` do.
    """
    if is_file(source):
        return configured(source, sets, sides, catalogue=catalogue)
    return [hub.looked(source, outline)]


def built(
    source: str, sets: Sequence[str], sides: Sequence[str], *, catalogue: Catalogue
) -> list[tuple[str, nn.Module]]:
    """The models themselves with their names: of a configuration those of the sides that it has, in that order.

    Where it has several teachers, all of them come with the student; a folder or a name of transformers gives one
    model, without memory for its weights.
    """
    if not is_file(source):
        return [(source, hub.bare(source))]
    document = first(source, sets)
    with placed(document):
        config = resolved(document, catalogue)
        require_source(config)
        there = modelled(config)
        with kept_random(), factory.importing(config.pythonpath):
            found = [side for side in sides if side in there] or ["student"]
            if "student" in sides and "teacher" in sides and "teacher" not in there:  # of several, or of tasks
                found += [name for name in there if name != "student"]
            return [(name, model(config, there[name].made, there[name].path)) for name in found]


@attrs.frozen
class Modelled:
    """A model of a configuration."""

    made: Factory | Derived
    path: str
    """Where it stands: `tasks.trec.teacher`."""
    task: str
    """The task whose data it takes; the first one's for the student."""


def modelled(config: Experiment) -> dict[str, Modelled]:
    """The models of a configuration by what they are called: `student`, `teacher`, or a teacher's own name.

    Those of tasks have the task's name before theirs: `trec.teacher`.
    """
    found = {"student": Modelled(config.student, "student", next(iter(config.parts)))}
    for task, part in config.parts.items():
        before = f"{task}." if task else ""
        if part.teacher is not None:
            found[f"{before}teacher"] = Modelled(part.teacher, f"{place(task)}teacher", task)
        for name, made in (part.teachers or {}).items():
            found[f"{before}{name}"] = Modelled(made, f"{place(task)}teachers.{name}", task)
    return found


def required(config: Experiment, side: str) -> Modelled:
    """A model of a configuration by what it is called; raises ConfigError when there is none."""
    there = modelled(config)
    if side not in there:
        more = f"; {words.hint(side, there)}" if len(there) > 2 else ""
        raise ConfigError([Problem(side, f"there is no [{side}] table in this file{more}")])
    return there[side]


def first(path: str, sets: Sequence[str]) -> Document:
    """A configuration, of several stages the first one's."""
    return next(iter(staged(read(path, sets)).values()))


def is_file(source: str) -> bool:
    """Whether a name means a configuration: a file, or what was meant to be one."""
    return source.endswith(".toml") or Path(source).is_file()


def configured(path: str, sets: Sequence[str], sides: Sequence[str], *, catalogue: Catalogue) -> list[Outline]:
    """Pass the first training batch through models of a configuration.

    Raises ConfigError when the file is wrong, or has no such model; DataError when the batch does not fit.
    """
    document = first(path, sets)
    with placed(document):
        config = resolved(document, catalogue)
        require_source(config)
        wanted = [required(config, side) for side in sides]
        device = chosen(config.train.device)
        with kept_random(device), factory.importing(config.pythonpath):

            def drawn(one: Modelled) -> Outline:
                data = config.parts[one.task].data
                names = Names(**{field.name: getattr(data, field.name) for field in attrs.fields(Names)})
                whole = feed(config, one.task, "train")
                (batch,) = (Chain({one.task: whole}) if one.task else whole).first()
                part = parted(
                    batch, *(("student",) if one.path == "student" else ("teacher", one.path.rpartition(".")[2]))
                )
                built = model(config, one.made, one.path).to(device)
                inputs = {key: part[key] for key in accepted(built, part, names.kept)}
                with evaluating(built):
                    return outline(built, lambda: built(**moved(inputs, device)))

            return [drawn(one) for one in wanted]
