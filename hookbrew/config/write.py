"""Writing: an experiment becomes TOML with every default explicit; what is None is absent."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from functools import singledispatch
from pathlib import PurePath
from typing import Any

import attrs
import tomli_w

from hookbrew.config.keys import Keys, dotted
from hookbrew.config.tree import Component, Edit, Experiment, Factory, Loss, Optimizer, Weight
from hookbrew.errors import ConfigError, Problem

LEAVES = (str, int, float, datetime.date, datetime.time)


def write(experiment: Experiment) -> str:
    """The TOML that reads as this experiment; raises ConfigError for a value that TOML has no form for."""
    tree = plain(experiment)
    writable(tree, ())
    return tomli_w.dumps(tree)


@singledispatch
def plain(value: Any) -> Any:
    """A value of the experiment as it stands in a file."""
    if attrs.has(type(value)):
        return fields(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value


@plain.register
def _(value: Factory) -> dict[str, Any]:
    return {"factory": value.factory, **plain(value.arguments)}


@plain.register
def _(value: Component) -> dict[str, Any]:
    return {"type": value.type, **fields(value.options)}


@plain.register
def _(value: Edit) -> dict[str, Any]:
    return {"type": value.type, "model": value.model, **fields(value.options)}


@plain.register
def _(value: Optimizer) -> dict[str, Any]:
    return {"type": value.type, "lr": value.lr, **plain(value.arguments)}


@plain.register
def _(value: Weight) -> Any:
    return value.base if value.schedule is None else {**plain(value.schedule), "base": value.base}


@plain.register
def _(value: Loss) -> dict[str, Any]:
    placement = fields(value)
    options, varying = placement.pop("options"), placement.pop("varying")
    return {**placement, **options, **varying}


def fields(value: Any) -> dict[str, Any]:
    """The fields of an attrs class that its table has, those that are None by default left out."""
    made = {f.name: (f.default, getattr(value, f.name)) for f in attrs.fields(type(value)) if f.init}
    return {name: plain(item) for name, (default, item) in made.items() if item is not None or default is not None}


def writable(value: Any, keys: Keys) -> None:
    """Raise ConfigError where a value is nothing that TOML can say: None, a tensor."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inside is None and not isinstance(value, LEAVES):
        raise ConfigError([Problem(dotted(keys), f"TOML has no form for {value!r}")])
    for key, inner in inside or ():
        writable(inner, (*keys, key))
