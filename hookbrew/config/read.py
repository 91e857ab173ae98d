"""Reading: a file, the files it extends, and the settings of the command line become one document."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hookbrew.config import sets as settings
from hookbrew.config.document import Document
from hookbrew.config.faults import Mismatch, shown
from hookbrew.config.merge import Layer, merge
from hookbrew.config.text import load
from hookbrew.errors import ConfigError, Problem


def read(path: str | os.PathLike[str], sets: Iterable[str] = ()) -> Document:
    """Read a configuration file, and change it by `key=value` settings.

    Raises ConfigError when it cannot be read, is not TOML, extends itself, or a setting is malformed.
    Nothing is checked against the schema yet: see `check_names` and `structure`.
    """
    layer = stacked(Path(path), ())
    problems = [problem for text in sets for problem in changed(layer, text)]
    if problems:
        raise ConfigError(problems)
    return Document(Path(path), layer.tree, layer.sources, layer.dropped)


def changed(layer: Layer, text: str) -> list[Problem]:
    """Apply one setting; what is wrong with it."""
    try:
        settings.apply(layer, settings.parse(text))
    except Mismatch as error:
        return [Problem("", str(error), f"-s {text}")]
    return []


def stacked(path: Path, chain: Sequence[Path], said: Problem | None = None) -> Layer:
    """A file over the files that it extends. chain: the files that led here."""
    top = load(path, said=said)
    bases = named(top)
    base: Layer | None = None
    for problem, other in bases:
        inner = Path(os.path.normpath(path.parent / os.path.expanduser(other)))
        trail = [*chain, path]
        if real(inner) in map(real, trail):
            loop = " -> ".join(map(str, [*trail, inner]))
            raise ConfigError([Problem(problem.path, f"these files extend each other: {loop}", problem.place)])
        layer = stacked(inner, trail, problem)
        if base is None:
            base = layer
        else:
            merge(base, layer)
    if base is None:
        return top
    merge(base, top)
    base.sources[()] = top.sources[()]
    return base


def real(path: Path) -> str:
    """The path by which two names of one file are equal."""
    return os.path.realpath(path)


def named(layer: Layer) -> list[tuple[Problem, str]]:
    """Take `extends` out of a layer: each file it names, with the key that does so."""
    value: Any = layer.tree.pop("extends", [])
    source = layer.sources.get(("extends",))
    layer.forget(("extends",))
    if isinstance(value, str):
        value = [value]
    where = source.where if source else None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        wrong = value if not isinstance(value, list) else next(item for item in value if not isinstance(item, str))
        message = f"expected a file or a list of files, got {shown(wrong)}"
        raise ConfigError([Problem("extends", message, where)])
    return [(Problem("extends", "", where), item) for item in value]
