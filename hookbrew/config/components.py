"""Components and factories from their tables: flat, with a `type` or `factory` that says what they are."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

import attrs
from cattrs import Converter

from hookbrew import words
from hookbrew.config.faults import Fault, Mismatch, collected, finish, of_names, shown
from hookbrew.config.keys import Keys
from hookbrew.config.strict import Hook, number, table
from hookbrew.config.tree import COMPONENTS, Component, Factory, Loss, Optimizer, Weight
from hookbrew.errors import PluginError

PLACEMENT = frozenset(field.name for field in attrs.fields(Loss)) - {"type", "options"}
"""The keys of a loss's table that are not options of the loss."""
DOTTED = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
CALLABLE = re.compile(f"{DOTTED}:{DOTTED}")


class Catalogued(Protocol):
    """What is asked of a catalogue of components."""

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
        self._placed = table(
            Loss, conv, type=given, options=given, weight=self.weight, projection=self.component("projection")
        )

    def component(self, field: str) -> Hook:
        """The hook for a field that holds a component. A projection without options may be a bare name."""
        kind = COMPONENTS[field]

        def structure(value: Any, _: Any) -> Component | None:
            if value is None or isinstance(value, Component):
                return value
            if field == "projection" and isinstance(value, str):
                value = {"type": value}
            name, options = self.named(kind, demanded(value))
            return Component(type=name, options=options)

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
        return self.scheduled(demanded(value, "a number or a table"))

    def scheduled(self, table: dict[str, Any]) -> Weight:
        """A weight that changes in the course of the training."""
        found: list[Fault] = []
        base, schedule = 1.0, None
        with collected(found, "base"):
            base = number(table.get("base", base), float)
        with collected(found, also=["base"]):
            name, options = self.named("schedules", table, ["base"])
            schedule = Component(type=name, options=options)
        finish(found)
        return Weight(base=base, schedule=schedule)

    def loss(self, value: Any, _: Any) -> Loss:
        """A table of `[[losses]]`: where its tensors come from, and the options of the loss."""
        if isinstance(value, Loss):
            return value
        table = demanded(value)
        found: list[Fault] = []
        name, options = "", None
        with collected(found):
            name, options = self.named("losses", table, PLACEMENT)
        placed: Any = None
        with collected(found):
            placement = {key: table[key] for key in table if key in PLACEMENT}
            placed = self._placed({**placement, "type": name, "options": options}, Loss)
        finish(found)
        return placed  # type: ignore[no-any-return]  # nothing was found, so it is a Loss


def given(value: Any, _: Any) -> Any:
    """The value as it is: it has been structured before."""
    return value
