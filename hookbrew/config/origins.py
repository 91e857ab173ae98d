"""Origins: every value of an experiment with where it was written, for `hookbrew config show --origin`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import tomli_w

from hookbrew.config.document import Document
from hookbrew.config.keys import Keys, dotted
from hookbrew.config.tree import Experiment
from hookbrew.config.walk import at
from hookbrew.config.write import plain


def origin_lines(document: Document, experiment: Experiment) -> Iterator[tuple[str, str, str]]:
    """Key, value as TOML, and where it came from: `file:line`, `-s key=value`, or `default`."""
    for keys, value in leaves(plain(experiment), ()):
        yield dotted(keys), inline(value), origin(document, keys)


def settings(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a configuration by their keys as a user writes them: `losses[0].type`."""
    return {dotted(keys): value for keys, value in leaves(tree, ())}


def leaves(value: Any, keys: Keys) -> Iterator[tuple[Keys, Any]]:
    """Each value that is no table, and no list of tables."""
    if isinstance(value, Mapping) and (value or not keys):
        for key, item in value.items():
            yield from leaves(item, (*keys, key))
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from leaves(item, (*keys, index))
    else:
        yield keys, value


def origin(document: Document, keys: Keys) -> str:
    """Where a value was written."""
    spelt = document.spelt(keys)
    return "default" if at(document.tree, spelt) is None else str(document.source(spelt))


def inline(value: Any) -> str:
    """A value as TOML, in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{dotted((key,))} = {inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return tomli_w.dumps({"v": value}).removeprefix("v = ").rstrip("\n")
