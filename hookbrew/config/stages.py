"""Stages: one file that trains a student several times over, each time as another table of `[[stages]]` says.

A stage is the file with that table laid over it, as a file is laid over one that it extends. The first trains
`[student]`, each later one goes on with the same model.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import tomli_w

from hookbrew import words
from hookbrew.config.document import Document
from hookbrew.config.faults import Fault, shown
from hookbrew.config.keys import Keys, dotted
from hookbrew.config.merge import Layer, merge
from hookbrew.config.tree import Experiment
from hookbrew.config.walk import at
from hookbrew.config.write import plain, writable

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
TAKEN = ("config.toml", "resolved.toml", "env.json", "status.json")
"""The files of a run's folder, beside which the folders of its stages are."""
SHARED = ("output", "student", "plugins", "pythonpath", "surgery", "stages")
"""What all stages have in common: a table of one cannot say it."""
KNOWN = tuple(field.name for field in attrs.fields(Experiment) if field.name not in SHARED)
"""The keys of a table of `[[stages]]`, besides its name."""


def staged(document: Document) -> dict[str, Document]:
    """A document for each stage, by name, whose output is a folder inside the whole run's.

    Of a document without stages it is the one, under no name. Raises ConfigError for tables that are no stages.
    """
    if "stages" not in document.tree:
        return {"": document}
    tables = document.tree["stages"]
    found = [*misstaged(tables)]
    if found:
        raise document.error(found)
    return {name: laid(document, name, index) for index, name in enumerate(map(named, tables, range(len(tables))))}


def named(table: Mapping[str, Any], index: int) -> str:
    """What a stage is called: `stage-1` is the first one without a name."""
    return str(table.get("name", f"stage-{index + 1}"))


def misstaged(tables: Any) -> Iterator[Fault]:
    """What is wrong with the tables of stages, as far as it can be said without what they lie over."""
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        yield Fault(("stages",), f"expected tables, [[stages]]; got {shown(tables)}")
        return
    seen = set[str]()
    for index, table in enumerate(tables):
        keys: Keys = ("stages", index)
        name = named(table, index)
        if not isinstance(table.get("name", ""), str) or not NAME.fullmatch(name):
            message = "a stage's name has up to 100 letters, digits, - _ and . and names its folder"
            yield Fault((*keys, "name"), f"{message}; got {shown(table['name'])}")
        elif name.lower() in TAKEN:
            yield Fault((*keys, "name"), f"{name} is a file of the run's folder; give the stage another name")
        elif name.lower() in seen:  # for some file systems, two names that differ by case are one
            yield Fault((*keys, "name"), f"there is a stage {name!r} already; give this one another name")
        seen.add(name.lower())
        for key in table:
            if key in SHARED:
                yield Fault((*keys, key), "all stages have this in common; write it above [[stages]]")
            elif key not in ("name", *KNOWN):
                yield Fault((*keys, key), f"unknown key; {words.hint(key, ('name', *KNOWN))}")


def laid(document: Document, name: str, index: int) -> Document:
    """The document of one stage."""
    base = Layer({k: v for k, v in copy.deepcopy(document.tree).items() if k != "stages"}, {})
    base.sources = {keys: source for keys, source in document.sources.items() if keys[:1] != ("stages",)}
    here: Keys = ("stages", index)
    base.sources[()] = document.source(here)  # where what is missing would stand
    table = {key: value for key, value in copy.deepcopy(document.tree["stages"][index]).items() if key != "name"}
    inside = {keys[2:]: source for keys, source in document.sources.items() if keys[:2] == here and keys != here}
    merge(base, Layer(table, inside))
    output = base.tree.get("output")
    if isinstance(output, str) and output:  # an empty one is refused, and would lead to the root of all folders
        base.tree["output"] = f"{output}/{name}"
    here_too = [f"stages[{index}]: {note}" for note in base.dropped]
    dropped = [*(document.dropped if index == 0 else ()), *here_too, *hidden(document, table, name)]
    return Document(document.path, base.tree, base.sources, dropped, name)


def hidden(document: Document, table: Mapping[str, Any], name: str) -> Iterator[str]:
    """Which settings of the command line a stage does not obey, for its table says something else."""
    for keys, source in document.sources.items():
        set_here = isinstance(source.where, str) and not isinstance(at(document.tree, keys), dict)
        if set_here and keys[:1] != ("stages",) and at(table, keys) is not None:
            yield f"{source.where} does not reach stage {name!r}, whose table has {dotted(keys)} itself"


def write_stages(stages: Mapping[str, Experiment]) -> str:
    """The TOML that reads as these stages, with every default explicit; as `write` does for one experiment."""
    trees = {name: plain(experiment) for name, experiment in stages.items()}
    first = next(iter(trees.values()))
    shared = {key: first[key] for key in SHARED if key in first}
    shared["output"] = str(next(iter(stages.values())).output.parent)
    tables = [{"name": name} | {k: v for k, v in tree.items() if k not in SHARED} for name, tree in trees.items()]
    tree = {**shared, "stages": tables}
    writable(tree, ())
    return tomli_w.dumps(tree)
