"""From entry points to plugins: sorted, one at a time, each mistake pinned to the plugin that made it.

    Found    an entry point in the group "hookbrew"; nothing is imported
    Plugin   imported, and every hook that it has is known to be called
    Failed   not in the catalogue: why, and where
    Blocked  not in the catalogue, by the user's wish

A plugin that fails keeps no other from loading, and leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import attrs
import pluggy

from hookbrew.plugin.blame import outside
from hookbrew.plugin.faults import Fault, faults
from hookbrew.plugin.specs import PROJECT

HOME = "hookbrew"
"""Our own distribution: its plugin, the standard pack, comes first."""


@attrs.frozen(kw_only=True)
class Found:
    """A plugin that is installed, or was given; not yet imported."""

    name: str
    """The name of the entry point."""
    distribution: str = ""
    """What was installed, `hookbrew-dkd`; empty for a plugin that was given as an object."""
    version: str = ""
    target: str = ""
    """The entry module, `module` or `module:object`."""
    fetch: Callable[[], object] = attrs.field(eq=False, repr=False)
    """Imports the entry module and gives it."""

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})" if self.distribution else self.name

    def fields(self) -> dict[str, Any]:
        """What every later record of this plugin repeats."""
        return {field.name: getattr(self, field.name) for field in attrs.fields(Found)}


@attrs.frozen(kw_only=True)
class Plugin(Found):
    """A plugin whose hooks are registered."""

    module: object = attrs.field(eq=False, repr=False)
    """The entry module, or whatever object carries the hooks."""


@attrs.frozen(kw_only=True)
class Failed(Found):
    """A plugin that could not be loaded."""

    why: str
    where: str = ""
    """file:line, if the plugin's own code raised."""
    error: BaseException | None = attrs.field(default=None, eq=False, repr=False)


@attrs.frozen(kw_only=True)
class Blocked(Found):
    """A plugin that the user wants left out; it is not imported."""

    why: str


def installed() -> list[Found]:
    """Every entry point in the group "hookbrew": the standard pack first, then by name and distribution.

    The order of the file system, in which importlib.metadata gives them, decides nothing.
    """
    found = [
        Found(
            name=entry.name,
            distribution=entry.dist.name,
            version=entry.dist.version,
            target=entry.value,
            fetch=entry.load,
        )
        for entry in metadata.entry_points(group=PROJECT)
        if entry.dist is not None
    ]
    return sorted(found, key=lambda one: (one.distribution != HOME, one.name, one.distribution, one.target))


def given(plugin: object) -> Found:
    """A plugin that is handed over as an object: a module, a class or an instance."""
    name = getattr(plugin, "__name__", None) or type(plugin).__name__
    return Found(name=str(name), fetch=lambda: plugin)


def load(manager: pluggy.PluginManager, found: Found, taken: Mapping[str, Found]) -> Plugin:
    """Import a plugin and register its hooks with `manager`.

    taken: the plugins that were loaded before, by name.
    Raises Fault for a broken contract, and whatever the import or pluggy raises.
    """
    if found.name in taken:
        raise Fault(f"the name {found.name!r} is already taken by {taken[found.name].distribution or 'another plugin'}")
    module = found.fetch()
    for fault in faults(module):
        raise Fault(fault)
    if manager.is_registered(module):
        raise Fault(f"is the same object as plugin {manager.get_name(module)!r}")
    try:
        manager.register(module, name=found.name)
        if not manager.get_hookcallers(module):
            raise Fault("implements no hook")
    except BaseException:
        withdraw(manager, module)
        raise
    return Plugin(**found.fields(), module=module)


def withdraw(manager: pluggy.PluginManager, module: object) -> None:
    """Undo a registration, also one that stopped half-way."""
    if manager.is_registered(module):
        manager.unregister(module)


def failure(found: Found, error: BaseException) -> Failed:
    """The record of a plugin that raised while it was loaded."""
    text = " ".join(str(error).split())
    name = "" if isinstance(error, Fault) else type(error).__name__
    why = ": ".join(part for part in (name, text) if part)
    return Failed(**found.fields(), why=why, where=outside(error), error=error)
