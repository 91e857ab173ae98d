"""The JSON Schema of a configuration file (draft 2020-12), with every component of a catalogue.

For editors: it knows keys, types, bounds and documentation. What it cannot say, `hookbrew check` does.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, Literal

import attrs

from hookbrew.config.components import Catalogued
from hookbrew.config.stages import KNOWN
from hookbrew.config.strict import UNIONS, arms, origin
from hookbrew.config.tree import (
    COMPONENTS,
    EDITED,
    PLACEMENT,
    Component,
    Data,
    Edit,
    Experiment,
    Factory,
    Loss,
    Optimizer,
    Weight,
)
from hookbrew.config.walk import FACTORIES
from hookbrew.options import Option, describe, varies

Schema = dict[str, Any]

SIMPLE = {bool: "boolean", int: "integer", float: "number", str: "string"}
EXTENDS: Schema = {
    "type": ["string", "array"],
    "items": {"type": "string"},
    "description": "Files, relative to this one, whose keys this file adds to or replaces.",
}
STAGES: Schema = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string"}, **{key: {"$ref": f"#/properties/{key}"} for key in KNOWN}},
        "additionalProperties": False,
    },
    "description": "Trainings of one student, one after the other: each table is laid over the rest of the file.",
}
BASE: Schema = {"type": "number", "description": "The number that the schedule multiplies."}


def schema(catalogue: Catalogued) -> Schema:
    """The schema of a whole file. A file that extends others may leave out what they say."""
    made = Shape(catalogue).table(Experiment, whole=False)
    made["properties"].update(extends=EXTENDS, stages=STAGES)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "hookbrew experiment",
        "$defs": {"schedule": Shape(catalogue).component("schedules", {"base": BASE})},
        **made,
        "if": {"required": ["extends"]},
        "else": {
            "required": ["output", "student"],
            "if": {"not": {"required": ["stages"]}},
            "then": complete(catalogue),
        },
    }


def complete(catalogue: Catalogued) -> Schema:
    """What a file must have that extends no other, and has no stages which say the rest."""
    properties: Schema = {
        "data": {"required": required(describe(Data)), "properties": {}},
        "train": {
            "if": {"required": ["epochs"]},
            "then": {"not": {"required": ["steps"]}},
            "else": {"required": ["steps"]},
        },
        "lr_schedule": Shape(catalogue).component("schedules"),
    }
    for *outer, name in FACTORIES:
        inside = properties["data"]["properties"] if outer else properties
        inside[str(name)] = {"required": ["factory"]}
    properties["teachers"] = {"additionalProperties": {"required": ["factory"]}}
    own = ("data", "losses", "teacher", "teachers", "merge")
    task = {"required": list(own[:2]), "properties": {k: properties[k] for k in own if k in properties}}
    return {
        "required": required(describe(Experiment)),
        "properties": properties,
        "if": {"required": ["tasks"]},
        "then": {"properties": {"tasks": {"additionalProperties": task}, **dict.fromkeys(own, False)}},
        "else": {"required": ["data", "losses"]},
    }


def required(known: Sequence[Option]) -> list[str]:
    """The names of the options that have no default."""
    return [option.name for option in known if option.required]


class Shape:
    """Writes the schemas of types, tables and components."""

    def __init__(self, catalogue: Catalogued) -> None:
        self.catalogue = catalogue

    def table(self, cls: type, *, whole: bool = True) -> Schema:
        """The schema of an attrs class; whole: keys without a default must be there."""
        known = describe(cls)
        made: Schema = {
            "type": "object",
            "properties": {option.name: self.option(option) for option in known},
            "additionalProperties": False,
        }
        return {**made, "required": required(known)} if whole else made

    def option(self, option: Option) -> Schema:
        """The schema of one key."""
        made = self.typed(option.type, option.name)
        bounds = dict(option.bounds)
        if made.get("type") == "array" and "minLength" in bounds:
            bounds["minItems"] = bounds.pop("minLength")
        made.update(bounds)
        if option.doc:
            made["description"] = option.doc
        if sayable(option.default):
            made["default"] = option.default
        return made

    def typed(self, hint: Any, name: str) -> Schema:
        """The schema of a type; name: the key that has it, which tells the kind of a component."""
        kind, inner = origin(hint), typing.get_args(hint)
        if kind in SIMPLE:
            return {"type": SIMPLE[kind]}
        if kind is Literal:
            return {"enum": list(inner)}
        if kind in UNIONS and Component in inner:
            return self.own(Component, name)
        if kind in UNIONS:
            return joined([self.typed(arm, name) for arm in arms(hint)])
        if kind in (list, tuple, Sequence):
            return {"type": "array", **({"items": self.typed(inner[0], name)} if inner else {})}
        if kind is dict:
            return {"type": "object", **({"additionalProperties": self.typed(inner[1], name)} if inner else {})}
        if isinstance(kind, type) and issubclass(kind, PurePath):
            return {"type": "string"}
        return self.own(kind, name) if attrs.has(kind) else {}

    def own(self, cls: type, name: str) -> Schema:
        """The schema of one of the tables of an experiment."""
        if cls is Factory:
            return {"type": "object", "properties": {"factory": {"type": "string", "pattern": "^[^:]+:[^:]+$"}}}
        if cls is Optimizer:
            known = {option.name: self.option(option) for option in describe(Optimizer) if option.name != "arguments"}
            return {"type": "object", "properties": known}
        if cls is Weight:
            return scheduled({"type": "number", "default": 1.0})
        if cls is Loss:
            placed = {option.name: self.option(option) for option in describe(Loss) if option.name in PLACEMENT}
            return self.component("losses", placed)
        if cls is Edit:
            return self.component("edits", {o.name: self.option(o) for o in describe(Edit) if o.name in EDITED})
        if cls is Component:
            return self.field(name)
        return self.table(cls, whole=False)

    def field(self, name: str) -> Schema:
        """The schema of a field that holds a component; `complete` demands what an lr_schedule must have."""
        kind = COMPONENTS[name]
        if name == "lr_schedule":
            return self.component(kind, whole=False)
        if name == "projection":
            table = {"if": {"required": ["factory"]}, "then": self.own(Factory, name), "else": self.component(kind)}
            named = {"enum": self.catalogue.names(kind)}
            return {"type": ["string", "object"], "if": {"type": "string"}, "then": named, "else": table}
        return self.component(kind)

    def component(self, kind: str, placed: Schema | None = None, *, whole: bool = True) -> Schema:
        """A table whose `type` decides which other keys it has; placed: the keys that all of them have."""
        names = self.catalogue.names(kind)
        made: Schema = {
            "type": "object",
            "properties": {"type": {"enum": names}, **(placed or {})},
            "allOf": [
                {
                    "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
                    "then": self.branch(kind, name, list(placed or ()), whole),
                }
                for name in names
            ],
        }
        return {**made, "required": ["type"]} if whole else made

    def branch(self, kind: str, name: str, placed: list[str], whole: bool) -> Schema:
        """The keys of one component; any, if its plugin is broken, which is no reason to have no schema."""
        try:
            cls = self.catalogue.load(kind, name)
            made = self.table(cls, whole=whole)
            if kind == "losses":
                numbers = [option.name for option in describe(cls) if varies(option.type)]
                made["properties"].update({name: scheduled(made["properties"][name]) for name in numbers})
        except Exception:
            return {}
        sentence = (cls.__doc__ or "").strip().partition("\n\n")[0]
        made["properties"].update({key: True for key in placed}, type={"description": " ".join(sentence.split())})
        return made


def scheduled(number: Schema) -> Schema:
    """The schema of a number that a table with a schedule may stand for."""
    return {**number, "type": ["number", "object"], "if": {"type": "object"}, "then": {"$ref": "#/$defs/schedule"}}


def joined(schemas: list[Schema]) -> Schema:
    """A schema that takes what any of several takes."""
    if len(schemas) == 1:
        return schemas[0]
    if all(set(schema) == {"type"} for schema in schemas):
        return {"type": [schema["type"] for schema in schemas]}
    return {"anyOf": schemas}


def sayable(value: Any) -> bool:
    """Whether a default is plain enough to be shown."""
    if isinstance(value, (list, tuple)):
        return all(map(sayable, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, (bool, int, str))
