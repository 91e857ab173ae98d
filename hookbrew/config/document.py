"""A document: the tree that a file and its bases give, and where each value of it was written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs

from hookbrew.config.keys import Keys, dotted, split
from hookbrew.config.walk import at
from hookbrew.errors import ConfigError, Place, Problem


@attrs.frozen
class Source:
    """Where a value was written."""

    where: Place | str
    """A place in a file, or the setting of the command line: `-s seed=3`."""
    folder: Path
    """What paths are relative to: the folder of the file, or the current one."""

    def __str__(self) -> str:
        """In short: `base/sgd.toml:4`."""
        return f"{self.where.file}:{self.where.line}" if isinstance(self.where, Place) else self.where


@attrs.define
class Document:
    """What was read, before any of it is checked against the schema."""

    path: Path
    """The file, as the user named it."""
    tree: dict[str, Any]
    """Plain tables, lists and values; `extends` and `-s` are worked in."""
    sources: dict[Keys, Source]
    """For each key, table and list item, where it was written last; the root has the file's first line."""
    dropped: list[str] = attrs.field(factory=list)
    """What was thrown away because a table changed its type, a sentence for each."""
    stage: str = ""
    """The name of the stage that this is, if it is one."""

    def source(self, keys: Keys) -> Source:
        """Where these keys were written, or else the nearest table around them."""
        while keys and keys not in self.sources:
            keys = keys[:-1]
        return self.sources[keys]

    def spelt(self, keys: Keys) -> Keys:
        """Keys as the file has them: the bare name of a projection stands for a table with its `type`."""
        short = keys[-1:] == ("type",) and isinstance(at(self.tree, keys[:-1]), str)
        return keys[:-1] if short else keys

    def locate(self, path: str | Keys) -> Place | str:
        """The place of a key, given as `losses[1].temperature`, or else that of the table around it."""
        if not isinstance(path, str):
            return self.source(path).where
        try:
            return self.source(split(path)).where
        except ValueError:
            return self.source(()).where

    @property
    def origins(self) -> dict[str, Place | str]:
        """The place of every key that the file, its bases or the command line give, by its dotted path."""
        return {dotted(keys): source.where for keys, source in self.sources.items() if keys}

    def error(self, faults: Iterable[tuple[Keys, str]]) -> ConfigError:
        """One error of all faults with their places, in the order of the file."""
        problems = [Problem(dotted(self.spelt(keys)), message, self.locate(keys)) for keys, message in faults]
        return ConfigError(sorted(problems, key=rank))


def rank(problem: Problem) -> tuple[str, int, int]:
    """Sorts problems by file and line; those of the command line come last."""
    place = problem.place
    return (place.file, place.line, place.column) if isinstance(place, Place) else ("\uffff", 0, 0)
