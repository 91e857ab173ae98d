"""Structure: a document becomes an experiment, and tables of the Python API become components."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
from cattrs import Converter
from cattrs.cols import list_structure_factory
from cattrs.errors import BaseValidationError

from hookbrew import words
from hookbrew.config import strict
from hookbrew.config.anchor import anchored
from hookbrew.config.components import Catalogued, Components, factory, optimizer
from hookbrew.config.document import Document
from hookbrew.config.faults import Fault, Mismatch, collected, faults, finish
from hookbrew.config.keys import Keys, dotted
from hookbrew.config.tree import Component, Data, Experiment, Factory, Loss, Optimizer, Train
from hookbrew.errors import ConfigError, Place, Problem
from hookbrew.options import KINDS

TABLES: dict[str, type] = {"data": Data, "train": Train, "optimizer": Optimizer}
"""The tables whose keys are often written without them: `-s epochs=5`."""


def structure(document: Document, catalogue: Catalogued) -> Experiment:
    """The experiment that a document says; raises ConfigError with all that is wrong, in the order of the file."""
    conv = experimental(catalogue)
    try:
        return conv.structure(anchored(document, catalogue), Experiment)
    except (Mismatch, BaseValidationError) as error:
        found = [(fault.keys, inward(quoted(document, fault), fault.keys)) for fault in faults(error)]
        raise document.error(found) from error


def inward(message: str, keys: Keys) -> str:
    """The message of a fault; for a key of a table that stands outside it, with the table: `lr`, optimizer.lr."""
    inside = {f.name: f"{name}.{f.name}" for name, cls in TABLES.items() for f in attrs.fields(cls)}
    known = len(keys) == 1 and message.startswith("unknown key; one of") and keys[0] in inside
    return f"unknown key; did you mean {inside[str(keys[0])]!r}?" if known else message


def quoted(document: Document, fault: Fault) -> str:
    """The message of a fault; for a string that `-s` read as something else, with what to write instead."""
    where = document.locate(fault.keys)
    if isinstance(where, Place) or not fault.message.startswith("expected a string, got "):
        return fault.message
    key, _, value = where.removeprefix("-s ").partition("=")
    if key.strip() != dotted(fault.keys) or '"' in value:
        return fault.message
    return f"{fault.message}; write {key.strip()}='\"{value.strip()}\"'"


def experimental(catalogue: Catalogued) -> Converter:
    """The strict converter of whole experiments."""
    conv = strict.converter()
    made = Components(catalogue, conv)
    conv.register_structure_hook(Factory, factory)
    conv.register_structure_hook(Optimizer, optimizer(conv))
    conv.register_structure_hook(Loss, made.loss)
    conv.register_structure_hook(Train, lasting(conv))
    hooks = {
        "lr_schedule": made.component("lr_schedule"),
        "augments": each(made.component("augments")),
        "callbacks": each(made.component("callbacks")),
    }
    conv.register_structure_hook(Experiment, strict.table(Experiment, conv, **hooks))
    return conv


def each(hook: strict.Hook) -> strict.Hook:
    """The hook for a list of what another hook makes."""
    own = Converter(detailed_validation=True)
    own.register_structure_hook(Component, hook)
    return strict.demanding(list_structure_factory(list[Component], own), list[Component])


def lasting(conv: Converter) -> strict.Hook:
    """The hook for `[train]`, which says once how long."""
    own = strict.table(Train, conv)

    def structure(value: Any, _: Any) -> Any:
        found: list[Fault] = []
        made = None
        with collected(found):
            made = own(value, Train)
        if isinstance(value, Mapping):
            found += unlimited(value)
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


def structure_loss(table: Mapping[str, Any], catalogue: Catalogued) -> Loss:
    """A loss from its table, for the Python API; raises ConfigError: `loss 'kd_ce': temperatur: unknown key; ...`."""
    try:
        return experimental(catalogue).structure(dict(table), Loss)
    except (Mismatch, BaseValidationError) as error:
        raise called("losses", table, error) from error


def structure_component(kind: str, table: Mapping[str, Any], catalogue: Catalogued) -> Component:
    """A component from its table, for the Python API. kind: callbacks, augments, schedules or projections.

    Raises ConfigError with all that is wrong: `schedule 'linear': warmup: must be <= 1: 3`.
    """
    try:
        name, options = Components(catalogue, strict.converter()).named(kind, dict(table))
    except (Mismatch, BaseValidationError) as error:
        raise called(kind, table, error) from error
    return Component(type=name, options=options)


def structure_train(table: Mapping[str, Any]) -> Train:
    """The keys of `[train]`, for the Python API; raises ConfigError with all that is wrong."""
    try:
        return strict.converter().structure(table, Train)
    except (Mismatch, BaseValidationError) as error:
        raise ConfigError([Problem(dotted(keys), message, "fit") for keys, message in faults(error)]) from error


def called(kind: str, table: Mapping[str, Any], error: BaseException) -> ConfigError:
    """The faults of one component that Python code asked for."""
    name = table.get("type")
    place = f"{KINDS[kind]} {name!r}" if name else KINDS[kind]

    def problem(keys: Keys, message: str) -> Problem:
        itself = keys == ("type",) and isinstance(name, str)  # `no loss called 'kd'` says the name
        return Problem("", message) if itself else Problem(dotted(keys), message, place)

    return ConfigError([problem(*fault) for fault in faults(error)])
