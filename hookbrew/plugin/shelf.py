"""A catalogue that is being filled: plugin by plugin, each with all its names or with none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import pluggy

from hookbrew.options import KINDS
from hookbrew.plugin import specs
from hookbrew.plugin.blame import blame
from hookbrew.plugin.component import Entry, entered
from hookbrew.plugin.discovery import Failed, Found, Plugin, failure, load, withdraw
from hookbrew.plugin.faults import Fault
from hookbrew.plugin.specs import HOOKS, PROJECT, Register

Key = tuple[str, str]
"""kind and name."""


@attrs.define(eq=False)
class Shelf:
    """A catalogue that is being filled."""

    manager: pluggy.PluginManager = attrs.field(factory=lambda: pluggy.PluginManager(PROJECT))
    entries: dict[Key, Entry] = attrs.field(factory=dict)
    contested: dict[Key, tuple[Found, ...]] = attrs.field(factory=dict)
    plugins: list[Plugin] = attrs.field(factory=list)
    failed: list[Failed] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.manager.add_hookspecs(specs)

    def add(self, found: Found) -> Failed | None:
        """Load a plugin with all its names, or record why none of them is there."""
        try:
            plugin = load(self.manager, found, {plugin.name: plugin for plugin in self.plugins})
            try:
                entries = self.offered(plugin)
                self.refuse(plugin, entries)
            except BaseException:
                withdraw(self.manager, plugin.module)
                raise
        except (Exception, SystemExit) as error:  # a module that calls sys.exit() is one broken plugin, no more
            failed = failure(found, error)
            self.failed.append(failed)
            return failed
        self.plugins.append(plugin)
        self.entries.update(entries)
        return None

    def offered(self, plugin: Plugin) -> dict[Key, Entry]:
        """Call each hook of one plugin with a `register` that knows whom it belongs to."""
        entries: dict[Key, Entry] = {}
        for hook in self.manager.get_hookcallers(plugin.module) or ():
            register = registrar(HOOKS[hook.name], plugin, entries)
            for impl in hook.get_hookimpls():
                if impl.plugin is plugin.module:
                    self.call(impl, hook.name, register)
        return entries

    def call(self, impl: pluggy.HookImpl, hook: str, register: Register) -> None:
        """Call one hook; an error is told whose it is."""
        try:
            impl.function(register=register)
        except BaseException as error:
            blame(error, impl.function, f"raised by plugin {impl.plugin_name!r} in hook {hook}")
            raise

    def refuse(self, plugin: Plugin, entries: Mapping[Key, Entry]) -> None:
        """Raise Fault if a name is registered already, and remember that it is contested."""
        clashes = [key for key in entries if key in self.entries]
        for key in clashes:
            self.contested[key] = (*self.contested.get(key, (self.entries[key].plugin,)), plugin)
        if clashes:
            raise Fault("; ".join(claimed(*key, self.contested[key]) for key in clashes))


def registrar(kind: str, plugin: Plugin, entries: dict[Key, Entry]) -> Register:
    """The `register` of one plugin for one kind; it writes into `entries`."""

    def register(name: str, target: str | type) -> None:
        entry = entered(kind, name, target, plugin)
        if (kind, name) in entries:
            raise Fault(f"{entry} is registered twice")
        entries[kind, name] = entry

    return register


def claimed(kind: str, name: str, plugins: Sequence[Found]) -> str:
    """The sentence about a name with several owners."""
    *most, last = map(str, plugins)
    return f"{KINDS[kind]} {name!r} is registered by {'' if most[1:] else 'both '}{', '.join(most)} and {last}"
