"""Level 1 of `check`: every name is known and every plugin that the file asks for is there. Loads no component."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion

from hookbrew import words
from hookbrew.config.components import Catalogued, tag
from hookbrew.config.document import Document
from hookbrew.config.faults import Fault, Mismatch, faults, shown
from hookbrew.config.walk import components


class Plugged(Catalogued, Protocol):
    """A catalogue that also knows which plugins are there."""

    @property
    def plugins(self) -> Sequence[Any]:
        """The plugins, each with a name and a version."""

    @property
    def failed(self) -> Sequence[Any]:
        """Those that did not load, each with a name and why."""

    def explain(self, kind: str, name: str) -> str:
        """The sentence about a name that is not there."""


def check_names(document: Document, catalogue: Plugged) -> None:
    """Raise ConfigError with every `type` that no plugin registered, and every plugin that is not as required."""
    found = [*misnamed(document, catalogue), *unplugged(document.tree.get("plugins", []), catalogue)]
    if found:
        raise document.error(found)


def misnamed(document: Document, catalogue: Plugged) -> Iterator[Fault]:
    """The components that cannot be found."""
    for keys, kind, table in components(document.tree):
        try:
            name = tag(table, "type")
        except Mismatch as error:
            yield from faults(error, keys)
        else:
            if name not in catalogue.names(kind):
                yield Fault((*keys, "type"), catalogue.explain(kind, name))


def unplugged(required: Any, catalogue: Plugged) -> Iterator[Fault]:
    """The requirements in `plugins` that are not met."""
    if not isinstance(required, list):
        yield Fault(("plugins",), f"expected a list, got {shown(required)}")
        return
    for index, text in enumerate(required):
        message = lacking(text, catalogue) if isinstance(text, str) else f"expected a string, got {shown(text)}"
        if message:
            yield Fault(("plugins", index), message)


def lacking(text: str, catalogue: Plugged) -> str | None:
    """Why a requirement is not met; None if it is."""
    try:
        wanted = Requirement(text)
    except InvalidRequirement:
        return f'{shown(text)} is not a plugin with its versions, like "dkd>=0.3"'
    if wanted.url or wanted.marker or wanted.extras:
        return f'{shown(text)} says more than a plugin and its versions; write "{wanted.name}{wanted.specifier}"'
    known = {canonicalize_name(plugin.name): plugin for plugin in catalogue.plugins}
    plugin = known.get(canonicalize_name(wanted.name))
    if plugin is None:
        return absent(wanted.name, catalogue)
    try:
        met = wanted.specifier.contains(plugin.version, prereleases=True)
    except InvalidVersion:
        met = not wanted.specifier
    return None if met else f"plugin {plugin.name} is {plugin.version}; this file needs {text}"


def absent(name: str, catalogue: Plugged) -> str:
    """The sentence about a plugin that is not there, or that failed to load."""
    for failed in catalogue.failed:
        if canonicalize_name(failed.name) == canonicalize_name(name):
            return f"plugin {failed.name} failed to load: {failed.why}"
    return f"no plugin called {name!r} is installed; {words.hint(name, [p.name for p in catalogue.plugins])}"
