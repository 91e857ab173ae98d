"""Settings of the command line: `-s KEY=VALUE`, where a value is TOML, or else bare text."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from hookbrew.config.document import Source
from hookbrew.config.faults import Mismatch, shown
from hookbrew.config.keys import Keys, dotted, split
from hookbrew.config.merge import Layer, put
from hookbrew.config.text import excesses


@attrs.frozen
class Setting:
    """One `-s`."""

    text: str
    keys: Keys
    value: Any

    @property
    def source(self) -> Source:
        """What messages call it; its paths are relative to the current folder."""
        return Source(f"-s {self.text}", Path.cwd())


def parse(text: str) -> Setting:
    """Read `key=value`; raises Mismatch when it is malformed."""
    key, equals, value = text.partition("=")
    if not equals:
        raise Mismatch.of(f"{text!r} has no value; write it like train.epochs=5")
    try:
        keys = split(key.strip())
    except ValueError as error:
        raise Mismatch.of(str(error)) from error
    if keys[0] == "extends":
        raise Mismatch.of("a file extends another; the command line cannot")
    setting = Setting(text, keys, toml(value.strip()))
    for _, why in excesses({"v": setting.value}):
        raise Mismatch.of(why)
    return setting


def toml(text: str) -> Any:
    """The value of a TOML text; the text itself when it is not TOML."""
    try:
        tree = tomllib.loads(f"v = {text}")
    except (ValueError, RecursionError):
        return text
    return tree["v"] if len(tree) == 1 else text


def apply(base: Layer, setting: Setting) -> None:
    """Set one value, as if by a file laid over the base; raises Mismatch when the key goes wrongly through a list."""
    keys = setting.keys
    demand_way(base.tree, keys)
    # lists are replaced, not merged, so the layer begins at the innermost item
    depth = max([1, *(at + 1 for at, key in enumerate(keys) if isinstance(key, int))])
    holder: Any = base.tree
    for key in keys[: depth - 1]:
        holder = holder[key]
    value = setting.value
    for key in reversed(keys[depth:]):
        value = {key: value}
    written = [*(keys[:i] for i in range(depth, len(keys) + 1)), *within(setting.value, keys)]
    top = Layer(base.tree, dict.fromkeys(written, setting.source))
    put(base, holder, keys[:depth], value, top)


def within(value: Any, keys: Keys) -> Iterator[Keys]:
    """The keys inside a table, at any depth; it may be merged with another, key by key."""
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield (*keys, name)
        yield from within(inner, (*keys, name))


def demand_way(tree: dict[str, Any], keys: Keys) -> None:
    """Raise Mismatch unless each index is that of an item, and each list has one."""
    here: Any = tree
    for depth, key in enumerate(keys):
        at, rest = dotted(keys[:depth]), keys[depth + 1 :]
        if isinstance(key, int):
            demand_item(here, key, at)
            here = here[key]
        elif isinstance(here, list):
            index = int(key) if key.isdecimal() else 0
            after = rest if key.isdecimal() else (key, *rest)
            raise Mismatch.of(f"{at} is a list; write {dotted((*keys[:depth], index, *after))}")
        else:
            here = here.get(key) if isinstance(here, dict) else None


def demand_item(here: Any, index: int, path: str) -> None:
    """Raise Mismatch unless there is such an item."""
    if not isinstance(here, list):
        raise Mismatch.of(f"{path} is {shown(here)}, not a list")
    if index >= len(here):
        there = "is empty" if not here else f"has {len(here)}: {path}[0] to {path}[{len(here) - 1}]"
        raise Mismatch.of(f"there is no {path}[{index}]; {path} {there}")
