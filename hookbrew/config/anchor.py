"""Paths become absolute: those of a file are relative to that file, those of `-s` to the current folder.

Which strings are paths: `output`, `pythonpath` and those of `[cache]`; options of components that are declared
as Path; and among the arguments of factories those that begin with ./ or ../, and
`pretrained_model_name_or_path` if it names a folder that is there.
"""

from __future__ import annotations

import os
import typing
from pathlib import Path
from typing import Any

from hookbrew.config.components import Catalogued
from hookbrew.config.document import Document
from hookbrew.config.keys import Keys
from hookbrew.config.walk import components, factories, mapped


def anchored(document: Document, catalogue: Catalogued) -> dict[str, Any]:
    """The tree of a document with its paths made absolute; the document keeps its own."""

    def absolute(keys: Keys, text: str) -> str:
        return rooted(document.source(keys).folder, text)

    def argument(keys: Keys, text: str) -> str:
        folder = document.source(keys).folder
        named = keys[-1] == "pretrained_model_name_or_path" and (folder / text).is_dir()
        return absolute(keys, text) if named or text.startswith(("./", "../")) else text

    tree: dict[str, Any] = mapped(document.tree, (), lambda _, text: text)
    for name in ("output", "pythonpath"):
        if name in tree:
            tree[name] = mapped(tree[name], (name,), absolute)
    stored = tree.get("cache")
    for name in ("folder", "tokenizer"):
        if isinstance(stored, dict) and name in stored:
            stored[name] = mapped(stored[name], ("cache", name), absolute)
    for keys, table in factories(tree):
        table.update({key: mapped(value, (*keys, key), argument) for key, value in table.items() if key != "factory"})
    for keys, kind, table in components(tree):
        for name in path_options(kind, table, catalogue):
            table[name] = mapped(table[name], (*keys, name), absolute)
    return tree


def rooted(folder: Path, text: str) -> str:
    """A path as it is from a folder on, `~` in it too; an empty one stays so, to be refused."""
    return os.path.abspath(folder / os.path.expanduser(text)) if text else text


def path_options(kind: str, table: dict[str, Any], catalogue: Catalogued) -> list[str]:
    """The given options of a component that are declared as paths; none if it is unknown."""
    try:
        hints = typing.get_type_hints(catalogue.load(kind, table["type"])) if isinstance(table.get("type"), str) else {}
    except Exception:  # a missing name or a plugin's own mistake, said better when the component is structured
        return []
    return [name for name, hint in hints.items() if name in table and holds_path(hint)]


def holds_path(hint: Any) -> bool:
    """Whether a type is Path, or a list or choice of it."""
    return hint is Path or any(map(holds_path, typing.get_args(hint)))
