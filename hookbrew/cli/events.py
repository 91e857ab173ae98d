"""The tables of `hookbrew plugins list --events`: when events come, and which callbacks have them.

A callback is known by the class that its `build()` names as what it returns, so that none has to be made; one
that names none is made with its defaults.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Sequence
from typing import Any

from hookbrew import words
from hookbrew.errors import HookbrewError
from hookbrew.plugin import Catalogue, filters

EVENTS = ("EVENT", "COMES")
CALLBACKS = ("CALLBACK", "PLUGIN", "PRIORITY", "OPTIONAL", "EVENT", "ONLY")
"""OPTIONAL: whether an error disables it, and the run goes on."""
OPTIONAL = {True: "yes", False: "no", None: "an option"}


def described(catalogue: Catalogue) -> dict[str, Any]:
    """All events and all callbacks, as plain values; loads the callbacks, and torch."""
    from hookbrew.loop import Events

    events = [{"name": name, "comes": sentence(value)} for name, value in vars(Events).items() if callable(value)]
    return {"events": events, "callbacks": [record(catalogue, name) for name in catalogue.names("callbacks")]}


def sentence(function: object) -> str:
    """The first sentence of a docstring, without its full stop."""
    text = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
    return text.partition(". ")[0].removesuffix(".")


def record(catalogue: Catalogue, name: str) -> dict[str, Any]:
    """One callback: its events with their filters, its priority, and whether it is optional; or why it is not known."""
    from hookbrew.loop import EVENTS

    about: dict[str, Any] = {"name": name, "plugin": catalogue.entry("callbacks", name).plugin.name}
    try:
        made = kinds(catalogue.load("callbacks", name))
    except HookbrewError as error:
        return {**about, "why": str(error)}
    events: dict[str, list[dict[str, Any]]] = {}
    for event in EVENTS:
        methods = [method for method in (getattr(kind, event, None) for kind in made) if callable(method)]
        if methods:
            events[event] = [each.given() for each in filters(methods[0])]
    if not events:
        return {**about, "why": "its options are required, and build() does not say which class it returns"}
    return {
        **about,
        "priority": stated(made, "priority", 0),
        "optional": stated(made, "optional", False),
        "events": events,
    }


def kinds(options: type) -> list[Any]:
    """The classes that `build` says it returns; if it says none, what it makes with the defaults, if it can."""
    build: Any = options.build  # type: ignore[attr-defined]  # of every options class of a catalogue
    try:
        named = typing.get_type_hints(build).get("return")
    except Exception:  # annotations are code, which may fail in any way
        named = None
    found = [kind for kind in (*typing.get_args(named), named) if isinstance(kind, type) and eventful(kind)]
    if found:
        return found
    try:
        return [options().build()]
    except Exception:  # required options, or code of a plugin: then it is not known
        return []


def eventful(kind: object) -> bool:
    """Whether something has a method that is named for an event."""
    from hookbrew.loop import EVENTS

    return any(callable(getattr(kind, event, None)) for event in EVENTS)


def stated(made: Sequence[Any], name: str, default: int) -> int | None:
    """What all classes say of themselves, an integer or a bool; None if it is an option of an instance."""
    found = {value if isinstance(value := getattr(kind, name, default), int) else None for kind in made}
    return found.pop() if len(found) == 1 else None


def tables(facts: dict[str, Any]) -> str:
    """Both tables, as lines; a callback has a line for each of its events."""
    lines: list[Sequence[str]] = [CALLBACKS]
    for about in facts["callbacks"]:
        head: tuple[str, ...] = (about["name"], about["plugin"])
        if "why" in about:
            lines.append((*head, "?", "?", "?", about["why"]))
            continue
        priority, optional = about["priority"], about["optional"]
        head = (*head, "an option" if priority is None else str(priority), OPTIONAL[optional])
        for place, (event, given) in enumerate(about["events"].items()):
            only = ", ".join(f"{name}={value!r}" for each in given for name, value in each.items())
            lines.append((*(("",) * len(head) if place else head), event, only))
    events = [EVENTS, *((event["name"], event["comes"]) for event in facts["events"])]
    return "\n".join([*words.aligned(events), "", *words.aligned(lines, right={2})])
