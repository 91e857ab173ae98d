"""Structure: a document becomes an experiment, and tables of the Python API become components."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import attrs
from cattrs import Converter
from cattrs.cols import list_structure_factory
from cattrs.errors import BaseValidationError

from hookbrew import words
from hookbrew.config import strict
from hookbrew.config.anchor import anchored, rooted
from hookbrew.config.cache import Cache
from hookbrew.config.components import Catalogued, Components, factory, optimizer, student
from hookbrew.config.document import Document
from hookbrew.config.faults import MISSING, Fault, Mismatch, collected, faults, finish
from hookbrew.config.keys import Keys, dotted
from hookbrew.config.tree import Component, Data, Edit, Experiment, Factory, Loss, Merge, Optimizer, Train
from hookbrew.errors import ConfigError, Place, Problem
from hookbrew.options import KINDS

NAME = re.compile(r"[A-Za-z0-9_-]+")
TABLES: dict[str, type] = {"data": Data, "train": Train, "optimizer": Optimizer}
"""The tables whose keys are often written without them: `-s epochs=5`."""
WORKED = ("extends", "stages")
"""The keys of a file that are worked in before there is an experiment."""


def structure(document: Document, catalogue: Catalogued) -> Experiment:
    """The experiment that a document says; raises ConfigError with all that is wrong, in the order of the file."""
    conv = experimental(catalogue)
    try:
        return conv.structure(anchored(document, catalogue), Experiment)
    except (Mismatch, BaseValidationError) as error:
        found = [(fault.keys, inward(quoted(document, fault), fault.keys)) for fault in faults(error)]
        raise document.error(found) from error


def inward(message: str, keys: Keys) -> str:
    """The message of a fault; for a key of a table that stands outside it, with the table: `lr`, optimizer.lr.

    `extends` and `stages` are keys of a file, not of an experiment, and so the near ones of theirs are told here.
    """
    if len(keys) != 1 or not message.startswith("unknown key; one of"):
        return message
    inside = {f.name: f"{name}.{f.name}" for name, cls in TABLES.items() for f in attrs.fields(cls)}
    meant = inside.get(str(keys[0])) or words.nearest(str(keys[0]), WORKED)
    return f"unknown key; did you mean {meant!r}?" if meant else message


def quoted(document: Document, fault: Fault) -> str:
    """The message of a fault; for a string that `-s` read as something else, with what to write instead."""
    where = document.locate(fault.keys)
    if isinstance(where, Place) or not fault.message.startswith("expected a string, got "):
        return fault.message
    key, _, value = where.removeprefix("-s ").partition("=")
    if key.strip() != dotted(fault.keys) or '"' in value:
        return fault.message
    return f"{fault.message}; write {key.strip()}='\"{value.strip()}\"'"


@lru_cache(maxsize=8)
def experimental(catalogue: Catalogued) -> Converter:
    """The strict converter of whole experiments; it is made once for a catalogue, since cattrs compiles its hooks."""
    conv = strict.converter()
    made = Components(catalogue, conv)
    conv.register_structure_hook(Factory, factory)
    conv.register_structure_hook(Optimizer, optimizer(conv))
    conv.register_structure_hook(Loss, made.loss)
    conv.register_structure_hook(Train, lasting(conv))
    hooks = {
        "student": student(conv),
        "lr_schedule": made.component("lr_schedule"),
        "augments": each(made.component("augments")),
        "callbacks": each(made.component("callbacks")),
        "surgery": each(made.edit, Edit),
    }
    conv.register_structure_hook(Experiment, supplied(conv, hooks))
    return conv


def each(hook: strict.Hook, cls: type = Component) -> strict.Hook:
    """The hook for a list of what another hook makes, which is of a class."""
    own = Converter(detailed_validation=True)
    own.register_structure_hook(cls, hook)
    # mypy takes no list of a class that it is given at run time
    made: Any = list[cls]  # type: ignore[valid-type]
    return strict.demanding(list_structure_factory(made, own), made)


def supplied(conv: Converter, hooks: dict[str, strict.Hook]) -> strict.Hook:
    """The hook for a whole experiment, which says once what it learns: by itself, or in tasks."""
    own = strict.table(Experiment, conv, **hooks)

    def structure(value: Any, _: Any) -> Any:
        found: list[Fault] = []
        made = None
        with collected(found):
            made = own(value, Experiment)
        if isinstance(value, Mapping):
            found += unlearned(value)
        finish(found)
        return made

    return structure


def unlearned(tree: Mapping[str, Any]) -> Iterator[Fault]:
    """What is wrong with the parts of an experiment that say what is learned."""
    if tree.get("tasks"):
        for key in ("data", "losses", "teacher", "teachers", "merge"):
            if tree.get(key):
                yield Fault((key,), "there are tasks, and each has its own; write it into [tasks.NAME]")
        parts = tree["tasks"] if isinstance(tree["tasks"], Mapping) else {}
        for name in parts:
            if not NAME.fullmatch(str(name)):
                yield Fault(("tasks", name), "a task's name has letters, digits, - and _")
    else:
        known = [field.name for field in attrs.fields(Experiment)]
        near = {words.nearest(key, known) for key in tree if key not in known}
        parts = {"": tree}
        if "tasks" not in near and not any(words.nearest(key, WORKED) for key in tree if key not in known):
            yield from (Fault((key,), MISSING) for key in ("data", "losses") if key not in {*tree, *near})
            if isinstance(tree.get("train"), Mapping) and "tau" in tree["train"]:
                yield Fault(("train", "tau"), "there are no tasks to draw from")
    for name, part in parts.items():
        if isinstance(part, Mapping):
            yield from unteachable(part, ("tasks", name) if name else ())


def unteachable(part: Mapping[str, Any], keys: Keys) -> Iterator[Fault]:
    """What is wrong with the teachers of a task, or of a whole experiment."""
    teachers, merge = part.get("teachers"), part.get("merge")
    if "teacher" in part and teachers:
        yield Fault((*keys, "teachers"), "there is a teacher too; give it a name among these, or leave one out")
    named = list(teachers) if isinstance(teachers, Mapping) else []
    for name in named:
        if name == "student" or not NAME.fullmatch(str(name)):
            yield Fault(
                (*keys, "teachers", name), "a teacher's name has letters, digits, - and _, and is not 'student'"
            )
    if isinstance(merge, Mapping):
        if len(named) < 2:
            yield Fault((*keys, "merge"), "there are no several teachers to merge; name them with [teachers.NAME]")
        for name in merge["weights"] if isinstance(merge.get("weights"), Mapping) else ():
            if named and name not in named:
                yield Fault((*keys, "merge", "weights", name), f"there is no such teacher; {words.hint(name, named)}")


def lasting(conv: Converter) -> strict.Hook:
    """The hook for `[train]`, which says once how long, and nothing that excludes another thing."""
    own = strict.table(Train, conv)

    def structure(value: Any, _: Any) -> Any:
        found: list[Fault] = []
        made = None
        with collected(found):
            made = own(value, Train)
        if isinstance(value, Mapping):
            found += [*unlimited(value), *unstoppable(value)]
        finish(found)
        return made

    return structure


def unlimited(train: Mapping[str, Any]) -> Iterator[Fault]:
    """What is wrong with the length of the training."""
    known = [field.name for field in attrs.fields(Train)]
    near = {words.nearest(key, known) for key in train if key not in known}
    if "epochs" in train and "steps" in train:
        yield Fault(("steps",), "give either epochs or steps, not both")
    elif not {"epochs", "steps"} & {*train, *near}:
        yield Fault((), "missing: give either epochs or steps")


def unstoppable(train: Mapping[str, Any]) -> Iterator[Fault]:
    """What is wrong with a student that is both compiled and to stop before its head."""
    if train.get("chunked") is True and train.get("compile") in ("student", "both"):
        yield Fault(("chunked",), "a compiled student does not stop before its head; leave one out, this or 'compile'")


def structure_loss(table: Mapping[str, Any], catalogue: Catalogued) -> Loss:
    """A loss from its table, for the Python API; raises ConfigError: `loss 'kd_ce': temperatur: unknown key; ...`."""
    try:
        return experimental(catalogue).structure(dict(table), Loss)
    except (Mismatch, BaseValidationError) as error:
        raise called("losses", table, error) from error


def structure_component(kind: str, table: Mapping[str, Any], catalogue: Catalogued) -> Component:
    """A component from its table, for the Python API. kind: callbacks, augments, schedules, projections or edits.

    Raises ConfigError with all that is wrong: `schedule 'linear': warmup: must be <= 1: 3`.
    """
    try:
        conv = strict.converter()
        conv.register_structure_hook(Factory, factory)
        name, options = Components(catalogue, conv).named(kind, dict(table))
    except (Mismatch, BaseValidationError) as error:
        raise called(kind, table, error) from error
    return Component(type=name, options=options)


DEFAULT = Train(epochs=1)
UNREAD = {
    "teacher_precision": "a teacher that is given is not changed; cast it before: teacher.to(torch.bfloat16)",
    "shard": "models that are given are not sharded; do so before: torch.distributed.fsdp.fully_shard(student)",
    "timeout": "the process group is yours; say it there: torch.distributed.init_process_group(timeout=...)",
}
"""The keys of `[train]` that are of models and processes which a configured run makes by itself."""


def structure_train(table: Mapping[str, Any], also: Collection[str] = ()) -> Train:
    """The keys of `[train]`, for the Python API; raises ConfigError with all that is wrong.

    also: further names that may have been meant by one that is unknown.
    """
    try:
        train: Train = strict.converter().structure(table, Train)
        finish([*unstoppable(table)])
    except (Mismatch, BaseValidationError) as error:
        raise unfit(error, also=also) from error
    problems = [Problem(key, UNREAD[key], "fit") for key in UNREAD if getattr(train, key) != getattr(DEFAULT, key)]
    if problems:
        raise ConfigError(problems)
    return train


def structure_cache(given: str | Path | Mapping[str, Any]) -> Cache:
    """A folder, or the keys of `[cache]`, for the Python API; raises ConfigError with all that is wrong.

    Paths are relative to the current folder, and `~` is the user's own.
    """
    wanted: Any = Path | Cache
    try:
        made = strict.converter().structure(given, wanted)
    except (Mismatch, BaseValidationError) as error:
        raise unfit(error, "cache") from error
    made = Cache(folder=made) if isinstance(made, Path) else made
    paths = {name: getattr(made, name) for name in ("folder", "tokenizer")}
    here = Path.cwd()
    return attrs.evolve(made, **{name: Path(rooted(here, str(path))) for name, path in paths.items() if path})


def unfit(error: BaseException, *keys: str, also: Collection[str] = ()) -> ConfigError:
    """The faults of what `fit` was told, at these keys."""
    return ConfigError([Problem(dotted(at), message, "fit") for at, message in faults(error, keys, also)])


def structure_merge(table: Mapping[str, Any] | Merge, teachers: Iterable[str], at: str = "") -> Merge:
    """The keys of `[merge]`, for the Python API; raises ConfigError with all that is wrong, also with teachers' names.

    teachers: what they are called; none where there is one without a name. at: where they stand, as `tasks.trec.`.
    """
    found = [*unteachable({"teachers": dict.fromkeys(teachers), "merge": table}, ())]
    made = table
    with collected(found, "merge"):
        made = strict.converter().structure(table, Merge)
    if found:
        raise ConfigError([Problem(f"{at}{dotted(keys)}", message) for keys, message in found])
    assert isinstance(made, Merge)
    return made


def called(kind: str, table: Mapping[str, Any], error: BaseException) -> ConfigError:
    """The faults of one component that Python code asked for."""
    name = table.get("type")
    place = f"{KINDS[kind]} {name!r}" if name else KINDS[kind]

    def problem(keys: Keys, message: str) -> Problem:
        itself = keys == ("type",) and isinstance(name, str)  # `no loss called 'kd'` says the name
        return Problem("", message) if itself else Problem(dotted(keys), message, place)

    return ConfigError([problem(*fault) for fault in faults(error)])
