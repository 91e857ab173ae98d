"""The catalogue: every name that the installed plugins registered, and who registered it.

A catalogue is a value. It is made by `catalogue()` and handed on; nothing fills up on import, and no
component is imported before it is asked for by name.

Two plugins with one name for the same kind of component: the later one (by the order of `discovery`: the
standard pack first, then by name) fails as a whole, and a configuration that uses the contested name is
told both plugins. Nothing is overridden, in either direction.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence

import attrs

from hookbrew import words
from hookbrew.errors import PluginError
from hookbrew.options import KINDS
from hookbrew.plugin.component import Entry, options_class
from hookbrew.plugin.discovery import HOME, Blocked, Failed, Found, Plugin, given, installed
from hookbrew.plugin.shelf import Key, Shelf, claimed

ALLOW = "HOOKBREW_PLUGINS"
BLOCK = "HOOKBREW_BLOCK"


@attrs.frozen(eq=False)
class Catalogue:
    """Names to components. Kinds are plurals: losses, schedules, projections, augments, callbacks."""

    entries: Mapping[Key, Entry]
    contested: Mapping[Key, tuple[Found, ...]]
    """The names that several plugins claim, with those plugins."""
    plugins: tuple[Plugin, ...]
    failed: tuple[Failed, ...]
    blocked: tuple[Blocked, ...]

    def names(self, kind: str) -> list[str]:
        """The names of one kind that can be used, sorted. Imports nothing."""
        return sorted(name for of, name in self.entries if of == kind and (of, name) not in self.contested)

    def offers(self, plugin: Found) -> dict[str, list[str]]:
        """What a plugin registered: kind -> names, kinds without names left out."""
        own = sorted((entry.kind, entry.name) for entry in self.entries.values() if entry.plugin == plugin)
        offered = {kind: [name for of, name in own if of == kind] for kind in KINDS}
        return {kind: names for kind, names in offered.items() if names}

    def find(self, name: str) -> list[Entry]:
        """Every component with this name, of whatever kind."""
        return [self.entries[kind, name] for kind in KINDS if name in self.names(kind)]

    def entry(self, kind: str, name: str) -> Entry:
        """What is known of a name. Raises PluginError with the nearest name. Imports nothing."""
        if (kind, name) not in self.entries or (kind, name) in self.contested:
            raise PluginError(self.explain(kind, name))
        return self.entries[kind, name]

    def load(self, kind: str, name: str) -> type:
        """The options class behind a name; imports its module. Raises PluginError."""
        return options_class(self.entry(kind, name))

    def explain(self, kind: str, name: str) -> str:
        """Why a name cannot be used: the nearest one, and every plugin that is left out and might have it."""
        if (kind, name) in self.contested:
            return contest(kind, name, self.contested[kind, name])
        other = self.find(name)
        meant = f"{name!r} is {article(KINDS[other[0].kind])}" if other else words.hint(name, self.names(kind))
        return "; ".join([f"no {KINDS[kind]} called {name!r}", meant, *self.left_out()])

    def left_out(self) -> list[str]:
        """A sentence for each plugin that is installed, or asked for, and not here."""
        failed = [f"plugin {plugin} failed to load: {plugin.why}" for plugin in self.failed]
        return [*failed, *(f"plugin {plugin} is {plugin.why}" for plugin in self.blocked)]


def catalogue(
    *,
    discover: bool = True,
    plugins: Iterable[object] = (),
    allow: Collection[str] | None = None,
    block: Collection[str] = (),
) -> Catalogue:
    """Collect the names of all plugins.

    discover: look for installed plugins. Otherwise the environment plays no part.
    plugins: more of them, as objects: modules, instances, or classes whose hooks are static methods.
    allow: the only third-party plugins to load; None leaves it to HOOKBREW_PLUGINS=a,b (empty: none).
    block: plugins not to load, in addition to HOOKBREW_BLOCK=c. Only this can leave out `standard`.

    An installed plugin that cannot be loaded is listed in `failed`. Raises PluginError for one in `plugins`.
    """
    shelf = Shelf()
    blocked: list[Blocked] = []
    if discover:
        wanted = environment(ALLOW) if allow is None else set(allow)
        unwanted = set(block) | (environment(BLOCK) or set())
        everything = installed()
        for found in everything:
            reason = excluded(found, wanted, unwanted)
            if reason:
                blocked.append(Blocked(**found.fields(), why=reason))
            else:
                shelf.add(found)
        shelf.failed += absent((wanted or set()) - {found.name for found in everything})
    for plugin in plugins:
        failed = shelf.add(given(plugin))
        if failed:
            raise PluginError(f"plugin {failed} failed to load: {failed.why}") from failed.error
    return Catalogue(shelf.entries, shelf.contested, tuple(shelf.plugins), tuple(shelf.failed), tuple(blocked))


def environment(variable: str) -> set[str] | None:
    """The names in a variable, which separates them with commas; None if it is not set."""
    text = os.environ.get(variable)
    return None if text is None else {name.strip() for name in text.split(",")} - {""}


def excluded(found: Found, wanted: set[str] | None, unwanted: set[str]) -> str | None:
    """Why a plugin is left out, if it is. An allow-list speaks of third parties only."""
    if found.name in unwanted:
        return f"blocked ({BLOCK})"
    if wanted is not None and found.distribution != HOME and found.name not in wanted:
        return f"not on the allow-list ({ALLOW} or --no-plugins)"
    return None


def absent(names: Collection[str]) -> list[Failed]:
    """The records of plugins that the allow-list names and nobody installed."""
    why = f"named in {ALLOW}, but not installed"
    return [Failed(name=name, fetch=lambda: None, why=why) for name in sorted(names)]


def contest(kind: str, name: str, plugins: Sequence[Found]) -> str:
    """The sentence about a contested name, with a way out."""
    rest = ",".join(plugin.name for plugin in plugins[1:])
    return f"{claimed(kind, name, plugins)}; leave {'all but ' if plugins[2:] else ''}one out: {BLOCK}={rest}"


def article(noun: str) -> str:
    """`a loss`, `an augment`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
