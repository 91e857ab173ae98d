"""What a model is called on the command line: `name=place:part`, a folder, or `module:factory@weights`.

runs/sms                a run's student: that in final/, or in best/ if it has no other
runs/sms:teacher        a model of a run: teacher, or a teacher's own name; student, best, or another folder in it
distill.toml:teacher    a model of a configuration, as that makes it
models/tiny             a folder of transformers
my_nets:small           what a function gives; with weights, my_nets:small@small.safetensors
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import attrs

from hookbrew import words
from hookbrew.errors import HookbrewError
from hookbrew.folder import STATUS

Kind = Literal["run", "file", "folder", "factory"]

FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
LABEL = re.compile(r"[^/\\:=]+")


@attrs.frozen(kw_only=True)
class Named:
    """A model, found by its name and not yet made."""

    text: str
    """As it was written."""
    kind: Kind
    place: str
    """A folder, a file, or `module:factory`."""
    part: str = ""
    """Which model of a run or a configuration, or the file of a factory's weights; '' for what is usual."""
    label: str = ""
    """Given with `name=`; '' if none was."""

    @property
    def name(self) -> str:
        """What the table calls it."""
        if self.label:
            return self.label
        if self.kind == "factory":
            return self.place.rpartition(":")[2]
        stem = Path(self.place).resolve().name
        return f"{stem}:{self.part}" if self.part else stem


def named(text: str) -> Named:
    """A model by what is written; raises HookbrewError, with the nearest name, for what is none."""
    label, equals, rest = text.partition("=")
    if not equals or Path(text).exists() or not LABEL.fullmatch(label):
        label, rest = "", text
    head, _, tail = rest.rpartition(":")
    for place, part in ((rest, ""), (head, tail)):
        if place and (kind := known(place)):
            if part and kind == "folder":
                raise HookbrewError(f"{place} is no run folder, so there is no {part!r} in it; leave ':{part}' out")
            return inside(Named(text=text, kind=kind, place=place, part=part, label=label.strip()))
    function, _, weights = rest.partition("@")
    if FACTORY.fullmatch(function) and not near(function.partition(":")[0]):
        return Named(text=text, kind="factory", place=function, part=weights, label=label.strip())
    raise unknown(rest)


def known(place: str) -> Kind | None:
    """What a place is: a run folder, a configuration, or a folder with a model; None for nothing of the kind."""
    path = Path(place)
    if (path / STATUS).is_file() and (path / "resolved.toml").is_file():
        return "run"
    if path.is_dir():
        return "folder"
    return "file" if place.endswith(".toml") and path.is_file() else None


def inside(found: Named) -> Named:
    """A folder of a run, as runs/sms/best, is a part of that run: its student is made as the run says."""
    path = Path(found.place)
    if found.kind != "folder" or known(str(path.parent)) != "run":
        return found
    return attrs.evolve(found, kind="run", place=str(path.parent), part=path.name)


def unknown(place: str) -> HookbrewError:
    """What is said of a place that is none."""
    close = near(place) or near(place.rpartition(":")[0])
    meant = f"did you mean {close!r}?" if close else "a model is a run folder, a .toml file, a folder of transformers, "
    return HookbrewError(f"there is no {place!r}; {meant}" + ("" if close else "or module:factory"))


def near(place: str) -> str | None:
    """The folder or configuration beside a place whose name is the nearest."""
    path = Path(place)
    if not place or path.exists():
        return None
    try:
        beside = [str(other) for other in path.parent.iterdir() if known(str(other))]
    except OSError:
        return None
    return words.nearest(place, beside)


def require_names(names: Sequence[str]) -> None:
    """Raise HookbrewError for two models of one name."""
    for name in names:
        if names.count(name) > 1:
            raise HookbrewError(f"{names.count(name)} models are called {name!r}; name them: a=..., b=...")
