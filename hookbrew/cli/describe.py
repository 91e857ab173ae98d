"""What `hookbrew plugins show` says of a component: its documentation, its options, and a TOML block to paste."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from hookbrew.config.origins import inline
from hookbrew.config.tree import Weight
from hookbrew.options import Option, describe, varies
from hookbrew.plugin import KINDS, Catalogue, Entry
from hookbrew.plugin.blame import spot

HEADERS: dict[str, tuple[str, ...]] = {
    "losses": ("[[losses]]",),
    "schedules": ('# or, for a loss: weight = {{ type = "{name}" }}', "[lr_schedule]"),
    "projections": ("# below the [[losses]] that it belongs to", "[losses.projection]"),
    "augments": ("[[augments]]",),
    "callbacks": ("[[callbacks]]",),
    "edits": ("[[surgery]]",),
}
"""How the table of a component begins."""
SELECTORS = tuple(f'{side} = "..."  # selectors: `hookbrew taps` lists them' for side in ("student", "teacher"))


def description(entry: Entry, catalogue: Catalogue) -> dict[str, Any]:
    """All that is known of a component, as it stands in the JSON. Raises PluginError if it cannot be loaded."""
    cls = catalogue.load(entry.kind, entry.name)
    options = describe(cls)
    return {
        "kind": KINDS[entry.kind],
        "name": entry.name,
        "doc": inspect.getdoc(cls) or "",
        "plugin": str(entry.plugin),
        "target": entry.path,
        "where": written(cls),
        "options": [recorded(option, varies(option.type) and entry.kind == "losses") for option in options],
        "toml": "\n".join(block(entry, options, getattr(cls, "takes", "logits"))),
    }


def recorded(option: Option, varying: bool) -> dict[str, Any]:
    """One option, as it stands in the JSON; varying: whether a schedule may stand for it.

    A default of None means that the option may be left out.
    """
    return {
        "name": option.name,
        "type": option.kind() + (", or a schedule" if varying else ""),
        "required": option.required,
        "default": None if option.required else plain(option.default),
        "doc": option.doc,
    }


def plain(value: Any) -> Any:
    """A default as TOML and JSON can hold it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, Weight):
        return value.base
    return plain(attrs.asdict(value)) if attrs.has(type(value)) else value


def written(cls: type) -> str:
    """`file:line` of a class; "" for one that was typed in."""
    try:
        return spot(inspect.getsourcefile(cls) or "", inspect.getsourcelines(cls)[1])
    except (OSError, TypeError):
        return ""


def block(entry: Entry, options: Sequence[Option], takes: str) -> Iterator[str]:
    """The lines of a table with every default; what has none is a comment."""
    yield from (line.format(name=entry.name) for line in HEADERS[entry.kind])
    yield f'type = "{entry.name}"'
    if entry.kind == "losses" and takes == "hidden":
        yield from SELECTORS
    for option in options:
        if option.required or option.default is None:
            yield f"# {option.name} =  # {option.kind()}, {'required' if option.required else 'optional'}"
        else:
            yield f"{option.name} = {inline(plain(option.default))}"


def text(described: Mapping[str, Any]) -> str:
    """The description in lines."""
    first, _, rest = described["doc"].partition("\n\n")
    where = ", ".join(part for part in (f"plugin {described['plugin']}", described["where"]) if part)
    lines = [
        f"{described['kind']} {described['name']}: {' '.join(first.split())}".rstrip(": "),
        f"from {where}",
        *(f"  {line}".rstrip() for line in rest.splitlines()),
        "",
        *columns([cells(option) for option in described["options"]]),
    ]
    if described["options"]:
        lines.append("")
    return "\n".join([*lines, *(f"  {line}" for line in described["toml"].splitlines())])


def cells(option: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Name, type, default and documentation of an option."""
    default = "required" if option["required"] else "none" if option["default"] is None else inline(option["default"])
    return option["name"], option["type"], default, " ".join(option["doc"].split())


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as indented lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
