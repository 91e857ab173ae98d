"""Configuration: a TOML file becomes a checked experiment, and every mistake in it is told with its place.

    document = read("distill.toml", ["train.epochs=5"])     text: TOML, `extends`, settings of the command line
    check_names(document, catalogue)                        names: every `type` and plugin is there
    experiment = structure(document, catalogue)             options: every key has a name and value that is allowed
    write(experiment)                                       back to text, with every default said

Imports no torch. What components there are is asked of the catalogue that is passed in.
"""

from __future__ import annotations

from hookbrew.config.cache import Cache, unkept
from hookbrew.config.derived import Derived
from hookbrew.config.document import Document
from hookbrew.config.names import check_names
from hookbrew.config.origins import inline, origin_lines, settings
from hookbrew.config.read import read
from hookbrew.config.schema import schema
from hookbrew.config.stages import staged, write_stages
from hookbrew.config.structure import (
    structure,
    structure_cache,
    structure_component,
    structure_loss,
    structure_merge,
    structure_train,
)
from hookbrew.config.tree import (
    EVALUATED,
    Component,
    Data,
    Edit,
    Experiment,
    Factory,
    Loss,
    Merge,
    Optimizer,
    Task,
    Train,
    Weight,
)
from hookbrew.config.write import plain, write

__all__ = [
    "EVALUATED",
    "Cache",
    "Component",
    "Data",
    "Derived",
    "Document",
    "Edit",
    "Experiment",
    "Factory",
    "Loss",
    "Merge",
    "Optimizer",
    "Task",
    "Train",
    "Weight",
    "check_names",
    "inline",
    "origin_lines",
    "plain",
    "read",
    "schema",
    "settings",
    "staged",
    "structure",
    "structure_cache",
    "structure_component",
    "structure_loss",
    "structure_merge",
    "structure_train",
    "unkept",
    "write",
    "write_stages",
]
