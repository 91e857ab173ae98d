"""One layer of configuration over another: tables merge key by key, everything else replaces.

A table that changes its `type` or `factory` is replaced whole, for the keys of the old one mean nothing
to the new one; `epochs` and `steps` of `[train]` displace each other, and so do `teacher` and `teachers`. What that
drops is said.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from hookbrew.config.document import Source
from hookbrew.config.keys import Keys, dotted
from hookbrew.config.tree import Optimizer

TAGS = ("type", "factory")
OTHER = {"from": "factory", "factory": "from"}
"""What a `[student]` is said to be by."""
RIVALS: dict[Keys, tuple[tuple[str, str], ...]] = {
    ("train",): (("epochs", "steps"), ("steps", "epochs")),
    (): (("teacher", "teachers"), ("teacher", "merge"), ("teachers", "teacher")),
}
"""Keys that displace others, by their table."""
UNSAID: dict[Keys, Any] = {("optimizer",): attrs.fields(Optimizer).type.default}
"""The `type` of tables that may leave it out."""


@attrs.define
class Layer:
    """A tree, and where each of its values was written."""

    tree: dict[str, Any]
    sources: dict[Keys, Source]
    dropped: list[str] = attrs.field(factory=list)

    def forget(self, keys: Keys) -> None:
        """Drop the sources of a value and of all inside it."""
        for known in [known for known in self.sources if known[: len(keys)] == keys]:
            del self.sources[known]

    def note(self, keys: Keys, change: str, gone: Iterable[str]) -> None:
        """Say which keys of a table a change dropped, if any."""
        lost = [f"{name} ({self.sources[(*keys, name)]})" for name in gone]
        if lost:
            self.dropped.append(f"{dotted(keys)}{': ' * bool(keys)}{change}; dropped {', '.join(lost)}")


def merge(base: Layer, top: Layer) -> None:
    """Lay one layer over another, in place."""
    base.dropped += top.dropped
    outrival(base, (), base.tree, top.tree)
    for name, value in top.tree.items():
        put(base, base.tree, (name,), value, top)


def put(base: Layer, holder: Any, keys: Keys, value: Any, top: Layer) -> None:
    """Set one value of the base; holder: the table or list of the base that it is in, under the last key."""
    last = keys[-1]
    old = holder[last] if isinstance(last, int) else holder.get(last)
    if isinstance(old, dict) and isinstance(value, dict) and not retyped(base, keys, old, value):
        outrival(base, keys, old, value)
        for name, inner in value.items():
            put(base, old, (*keys, name), inner, top)
        return
    base.forget(keys)
    holder[last] = value
    base.sources.update((known, source) for known, source in top.sources.items() if known[: len(keys)] == keys)


def retyped(base: Layer, keys: Keys, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether a table changes what it is; if so, says what that drops."""
    for tag, other in OTHER.items():
        if local(keys) == ("student",) and tag in new and other in old and other not in new:
            base.note(keys, f"{other} -> {tag}", (name for name in old if name not in {*new, other}))
            return True
    for tag in TAGS:
        before = old.get(tag, UNSAID.get(local(keys)) if tag == "type" else None)
        if tag in new and before is not None and new[tag] != before:
            base.note(keys, f"{tag} {before} -> {new[tag]}", (name for name in old if name not in {*new, tag}))
            return True
    return False


def outrival(base: Layer, keys: Keys, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Drop the one of two exclusive keys when the other is given anew."""
    for mine, other in RIVALS.get(local(keys), ()):
        if mine in new and other not in new and other in old:
            base.note(keys, f"{other} -> {mine}", [other])
            base.forget((*keys, other))
            del old[other]


def local(keys: Keys) -> Keys:
    """The keys of a table as they are in a file without stages and tasks."""
    for name in ("stages", "tasks"):
        keys = keys[2:] if len(keys) > 1 and keys[0] == name else keys
    return keys
