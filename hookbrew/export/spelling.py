"""A factory of a configuration, spelled as Python that needs no hookbrew."""

from __future__ import annotations

import datetime
import math
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path, PurePath
from typing import Any

from hookbrew.config import Factory
from hookbrew.errors import ExportError

WIDE = 88
"""Characters of a call that stands on one line."""


def loading(factory: Any) -> str:
    """Lines that make what a factory makes, and call it `student`; raises ExportError for what is no factory."""
    if not isinstance(factory, Factory):
        raise ExportError("the student has no factory that could make it again; use --format torch-export or onnx")
    value = {"factory": factory.factory, **factory.arguments}
    names = sorted({*modules(value)})
    lines = [*searching(names), *(f"import {name}" for name in names), "", f"student = {expression(value)}"]
    return "\n".join(lines)


def searching(names: list[str]) -> list[str]:
    """Lines that let Python find modules that are in no installed package."""
    places = sorted({place for name in names if (place := home(name))})
    return ["import sys", "", f"sys.path[:0] = {places!r}  # where the modules below are", ""] if places else []


def home(name: str) -> str | None:
    """The folder on sys.path that a module was imported from; None for what is installed or of Python itself."""
    module = import_module(name.partition(".")[0])
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    if file is None or "site-packages" in Path(file).parts or "dist-packages" in Path(file).parts:
        return None
    path = Path(file).absolute()
    folder = path.parent.parent if hasattr(module, "__path__") and path.name == "__init__.py" else path.parent
    standard = Path(datetime.__file__).parent
    return None if folder == standard or name.partition(".")[0] in sys.stdlib_module_names else str(folder)


def modules(value: Any) -> Iterator[str]:
    """The modules that a value needs, nested factories included."""
    if isinstance(value, Mapping):
        if isinstance(value.get("factory"), str):
            yield value["factory"].partition(":")[0]
        for inner in value.values():
            yield from modules(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from modules(inner)
    elif isinstance(value, (datetime.date, datetime.time)):
        yield "datetime"


def expression(value: Any) -> str:
    """A value as Python has it; a table with a `factory` is a call."""
    if isinstance(value, Mapping):
        if not isinstance(value.get("factory"), str):
            return "{" + ", ".join(f"{key!r}: {expression(inner)}" for key, inner in value.items()) + "}"
        return call(value["factory"].replace(":", "."), {k: v for k, v in value.items() if k != "factory"})
    if isinstance(value, list):
        return "[" + ", ".join(map(expression, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    return repr(str(value)) if isinstance(value, PurePath) else repr(value)


def call(name: str, arguments: Mapping[str, Any]) -> str:
    """A call, one argument a line where it is long; what is no name of Python goes in as a table."""
    given = [
        f"{key}={expression(v)}" if key.isidentifier() else f"**{{{key!r}: {expression(v)}}}"
        for key, v in arguments.items()
    ]
    line = f"{name}({', '.join(given)})"
    if len(line) <= WIDE:
        return line
    inside = "\n".join("    " + part.replace("\n", "\n    ") + "," for part in given)
    return f"{name}(\n{inside}\n)"
