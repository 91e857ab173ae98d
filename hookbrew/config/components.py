"""Components and factories from their tables: flat, with a `type` or `factory` that says what they are."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterator, Mapping
from typing import Any, Protocol

from cattrs import Converter

from hookbrew import words
from hookbrew.config.derived import Derived, wrong
from hookbrew.config.faults import MISSING, Fault, Mismatch, collected, finish, of_names, shown
from hookbrew.config.keys import Keys
from hookbrew.config.strict import Hook, number, table
from hookbrew.config.tree import COMPONENTS, EDITED, PLACEMENT, Component, Edit, Factory, Loss, Optimizer, Weight
from hookbrew.config.walk import manufactured
from hookbrew.errors import PluginError
from hookbrew.options import describe, varies

DOTTED = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
CALLABLE = re.compile(f"{DOTTED}:{DOTTED}")


class Catalogued(Hashable, Protocol):
    """What is asked of a catalogue of components, which does not change."""

    def names(self, kind: str) -> list[str]:
        """The names of a kind, sorted."""

    def load(self, kind: str, name: str) -> type:
        """The options class of a name, whose type hints resolve; raises PluginError with a whole sentence."""


def demanded(value: Any, expected: str = "a table") -> dict[str, Any]:
    """The value as a table; raises Mismatch unless it is one."""
    if not isinstance(value, Mapping):
        raise Mismatch.of(f"expected {expected}, got {shown(value)}")
    return dict(value)


def tag(given: dict[str, Any], name: str) -> str:
    """The `type` or `factory` of a table; raises Mismatch when it is missing, with the key that is nearest to it."""
    if name not in given:
        near = words.nearest(name, given)
        raise Mismatch(*of_names([near] if near else [], [name], [name]))
    value = given[name]
    if not isinstance(value, str):
        raise Mismatch.of(f"expected a string, got {shown(value)}", name)
    return value


def factory(value: Any, _: Any) -> Factory:
    """A factory's table: everything but the name is an argument."""
    if isinstance(value, Factory):
        return value
    given = demanded(value)
    found: list[Fault] = []
    with collected(found):
        tag(given, "factory")
    finish([*found, *misnamed(given, ())])
    return Factory(factory=given.pop("factory"), arguments=given)


def student(conv: Converter) -> Hook:
    """The hook for `[student]`: a factory's table, or one that says `from` which teacher it is made."""

    def kept(value: Any, _: Any) -> dict[str, list[int] | str]:
        made: dict[str, list[int] | str] = conv.structure(value, dict[str, list[int] | str])
        finish(Fault((path,), why) for path, layers in made.items() if (why := wrong(layers)) is not None)
        return made

    own = table(Derived, conv, keep=kept)
    known = [option.name for option in describe(Derived)]

    def structure(value: Any, hint: Any) -> Factory | Derived:
        if isinstance(value, Factory | Derived):
            return value
        given = demanded(value)
        if "factory" in given and "from" in given:
            raise Mismatch.of("give either from or factory, not both", "from")
        meant = {*known} & {*given} or (words.nearest("from", given) and not words.nearest("factory", given))
        if "factory" not in given and meant:
            return own(given, Derived)  # type: ignore[no-any-return]  # a hook gives its class
        return factory(given, hint)

    return structure


def measured(projection: Factory) -> Factory:
    """The factory of a projection; raises Mismatch for a width among its arguments, which would be ignored."""
    finish(
        Fault((side,), "it is measured, and passed to the factory; leave this key out")
        for side in ("student", "teacher")
        if side in projection.arguments
    )
    return projection


def misnamed(value: Any, keys: Keys) -> Iterator[Fault]:
    """The malformed names of factories in a value, at any depth."""
    if isinstance(value, dict):
        name = value.get("factory")
        if isinstance(name, str) and not CALLABLE.fullmatch(name):
            message = f"{shown(name)} is not module:attribute, like transformers:AutoModel.from_pretrained"
            yield Fault((*keys, "factory"), message)
        elif name is not None and not isinstance(name, str) and keys:
            yield Fault((*keys, "factory"), f"expected a string, got {shown(name)}")
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield from misnamed(inner, (*keys, key))


def optimizer(conv: Converter) -> Hook:
    """The hook for `[optimizer]`: what is not type or lr is an argument."""
    own = table(Optimizer, conv)

    def structure(value: Any, _: Any) -> Optimizer:
        if isinstance(value, Optimizer):
            return value
        given = demanded(value)
        known = {key: given.pop(key) for key in ("type", "lr") if key in given}
        return own({**known, "arguments": given}, Optimizer)  # type: ignore[no-any-return]  # a hook gives its class

    return structure


class Components:
    """Makes components with the option classes of a catalogue."""

    def __init__(self, catalogue: Catalogued, conv: Converter) -> None:
        self.catalogue, self.conv = catalogue, conv
        conv.register_structure_hook(Weight, self.weight)
        self._placed = table(
            Loss,
            conv,
            type=given,
            options=given,
            varying=given,
            weight=self.weight,
            projection=self.projection(),
        )

    def component(self, field: str) -> Hook:
        """The hook for a field that holds a component."""
        kind = COMPONENTS[field]

        def structure(value: Any, _: Any) -> Component | None:
            if value is None or isinstance(value, Component):
                return value
            name, options = self.named(kind, demanded(value))
            return Component(type=name, options=options)

        return structure

    def edit(self, value: Any, _: Any) -> Edit:
        """A table of `[[surgery]]`: which model, and the options of the edit."""
        if isinstance(value, Edit):
            return value
        table = demanded(value)
        found: list[Fault] = []
        name, options, model = "", None, table.get("model", "student")
        with collected(found):
            name, options = self.named("edits", table, EDITED)
        if not isinstance(model, str):
            found.append(Fault(("model",), f"expected a string, got {shown(model)}"))
        finish(found)
        return Edit(type=name, options=options, model=str(model))

    def projection(self) -> Hook:
        """The hook for a projection: a table with a `type` or a `factory`; without options a bare name will do."""
        component = self.component("projection")

        def structure(value: Any, hint: Any) -> Component | Factory | None:
            if isinstance(value, str):
                value = {"type": value}
            if isinstance(value, Factory) or (isinstance(value, Mapping) and manufactured(dict(value))):
                if not isinstance(value, Factory) and "type" in value:
                    raise Mismatch.of("give either type or factory, not both", "type")
                return measured(factory(value, hint))
            return component(value, hint)  # type: ignore[no-any-return]  # its hook gives a Component or None

        return structure

    def named(self, kind: str, table: dict[str, Any], placed: Collection[str] = ()) -> tuple[str, Any]:
        """The type of a table, and its options; the keys in `placed` belong to others."""
        name = tag(table, "type")
        cls = self.options_class(kind, name)
        found: list[Fault] = []
        with collected(found, also=placed):
            rest = {key: value for key, value in table.items() if key != "type" and key not in placed}
            return name, self.conv.structure(rest, cls)
        raise Mismatch(*found)

    def options_class(self, kind: str, name: str) -> Any:
        """The options class of a component; raises Mismatch, at its `type`, if there is none that can be used."""
        try:
            return self.catalogue.load(kind, name)
        except PluginError as error:
            raise Mismatch.of(str(error), "type") from error

    def weight(self, value: Any, _: Any) -> Weight:
        """A number, or a table that names a schedule, with a `base`."""
        if isinstance(value, Weight):
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return Weight(base=float(value))
        return self.scheduled(demanded(value, "a number or a table"), 1.0)

    def scheduled(self, table: dict[str, Any], default: Any) -> Weight:
        """A number that changes in the course of the training; default: its base where the table has none."""
        found: list[Fault] = []
        base, schedule = default, None
        with collected(found, also=["base"]):
            name, options = self.named("schedules", table, ["base"])
            schedule = Component(type=name, options=options)
        if "base" in table:
            with collected(found, "base"):
                base = number(table["base"], float)
        elif not isinstance(base, float) and not any(words.nearest(str(f.keys[-1]), ["base"]) for f in found):
            found.append(Fault(("base",), MISSING))
        finish(found)
        return Weight(base=float(base), schedule=schedule)

    def varied(self, table: dict[str, Any]) -> tuple[dict[str, Weight], list[Fault]]:
        """The options of a loss that are given as schedules, and what is wrong with these; none of an unknown loss."""
        made, found = dict[str, Weight](), list[Fault]()
        try:
            known = describe(self.options_class("losses", tag(table, "type")))
        except Mismatch:  # said by `named`
            return made, found
        for option in known:
            value = table.get(option.name)
            if varies(option.type) and isinstance(value, Weight):
                made[option.name] = value
            elif varies(option.type) and isinstance(value, Mapping):
                with collected(found, option.name):
                    made[option.name] = self.scheduled(dict(value), option.default)
        return made, found

    def loss(self, value: Any, _: Any) -> Loss:
        """A table of `[[losses]]`: where its tensors come from, and the options of the loss."""
        if isinstance(value, Loss):
            return value
        table = demanded(value)
        varying, found = self.varied(table)
        wrong = {fault.keys[0] for fault in found}
        bases = {name: weight.base for name, weight in varying.items()}
        inside = list[Fault]()
        name, options = "", None
        with collected(inside):
            name, options = self.named("losses", table | bases, PLACEMENT)
        found += [based(fault, table, varying) for fault in inside if not wrong & {*fault.keys[:1]}]
        placed: Any = None
        with collected(found):
            placement = {key: table[key] for key in table if key in PLACEMENT}
            moved = {key: weight for key, weight in varying.items() if weight.schedule is not None}
            placed = self._placed({**placement, "type": name, "options": options, "varying": moved}, Loss)
        finish(found)
        return placed  # type: ignore[no-any-return]  # nothing was found, so it is a Loss


def based(fault: Fault, table: Mapping[str, Any], varying: Mapping[str, Weight]) -> Fault:
    """A fault of the base of an option that varies, at the key where the base was written."""
    value = table.get(str(fault.keys[0])) if len(fault.keys) == 1 and fault.keys[0] in varying else None
    written = isinstance(value, Mapping) and "base" in value
    return Fault((*fault.keys, "base"), fault.message) if written else fault


def given(value: Any, _: Any) -> Any:
    """The value as it is: it has been structured before."""
    return value
