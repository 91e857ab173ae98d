"""A name becomes an options class: imported when asked for, and checked before anybody relies on it."""

from __future__ import annotations

import importlib
import re
import typing
from types import ModuleType

import attrs

from hookbrew import words
from hookbrew.errors import PluginError
from hookbrew.options import KINDS
from hookbrew.plugin.blame import outside
from hookbrew.plugin.discovery import Found, Plugin
from hookbrew.plugin.faults import Fault

NAME = re.compile(r"[a-z][a-z0-9_]*")
TARGET = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")

PLACEMENT: dict[str, frozenset[str]] = {
    "losses": frozenset(
        {"base", "labels", "mask", "name", "optimizer", "projection", "student", "teacher", "type", "weight"}
    ),
    "edits": frozenset({"model", "type"}),
    "projections": frozenset({"factory", "type"}),
    "schedules": frozenset({"base", "type"}),
}
"""The keys of a table that are not options of the component itself; `type` in all others."""


@attrs.frozen
class Entry:
    """A registered name."""

    kind: str
    """The kind, in the plural: `losses`."""
    name: str
    target: str | type
    """An options class, or the `module:Class` to import it from."""
    plugin: Found
    """Who registered the name."""

    def __str__(self) -> str:
        return f"{KINDS[self.kind]} {self.name}"

    @property
    def path(self) -> str:
        """The target in writing."""
        if isinstance(self.target, str):
            return self.target
        return f"{self.target.__module__}:{self.target.__qualname__}"


def entered(kind: str, name: object, target: object, plugin: Plugin) -> Entry:
    """The entry for one call of `register`. Raises Fault for a name or a target of the wrong form."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise Fault(f"{KINDS[kind]} name {name!r}: a name is made of a-z, 0-9 and _, and begins with a letter")
    if not isinstance(target, type) and not (isinstance(target, str) and TARGET.fullmatch(target)):
        raise Fault(f"{KINDS[kind]} {name}: expected a class or 'module:Class', got {target!r}")
    return Entry(kind, name, target, plugin)


def options_class(entry: Entry) -> type:
    """The options class that an entry stands for; imports its module.

    Raises PluginError, naming the plugin, if it cannot be imported or cannot be a component.
    """
    found = entry.target if isinstance(entry.target, type) else imported(entry, entry.target)
    if not isinstance(found, type) or not attrs.has(found):
        raise refused(entry, "is no options class; decorate a class with @options")
    if not callable(getattr(found, "build", None)):
        raise refused(entry, "has no method build()")
    try:
        typing.get_type_hints(found)
    except Exception as error:  # annotations are code, which may fail in any way
        raise refused(entry, f"has options that cannot be read: {type(error).__name__}: {error}") from error
    taken = PLACEMENT.get(entry.kind, frozenset({"type"}))
    for field in attrs.fields(found):
        if field.init and field.name in taken:
            raise refused(entry, f"has an option {field.name!r}, which every such table has already; rename it")
    return found


def imported(entry: Entry, target: str) -> object:
    """What `module:Class` names. Raises PluginError."""
    module, _, path = target.partition(":")
    try:
        found: object = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        where = outside(error)
        place = f" ({where})" if where else ""
        raise refused(entry, f"cannot be imported: {type(error).__name__}: {error}{place}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise refused(entry, f"does not exist; {words.hint(part, public(found))}")
        found = getattr(found, part)
    return found


def public(owner: object) -> list[str]:
    """The names in a module or class that could be meant: classes that are defined there."""
    home = owner.__name__ if isinstance(owner, ModuleType) else None
    return [
        name
        for name, value in vars(owner).items()
        if isinstance(value, type) and not name.startswith("_") and home in (None, value.__module__)
    ]


def refused(entry: Entry, what: str) -> PluginError:
    """The error about a component that cannot be used: which, of which plugin, and why."""
    return PluginError(f"{entry} of plugin {entry.plugin}: {entry.path} {what}")
