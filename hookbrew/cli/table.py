"""The rows of `hookbrew plugins list`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap
from typing import Any

from hookbrew.plugin import Catalogue
from hookbrew.words import aligned

WIDE = 72
"""Characters of the last column: a pack has more losses than fit on a line."""

HEADER = ("NAME", "VERSION", "FROM", "OFFERS")


def records(catalogue: Catalogue) -> list[dict[str, Any]]:
    """One record for each plugin: those that loaded, those that failed, those that are blocked."""
    loaded: list[dict[str, Any]] = [
        {"status": "ok", "offers": catalogue.offers(plugin)} for plugin in catalogue.plugins
    ]
    failed = [{"status": "failed", "why": plugin.why, "where": plugin.where} for plugin in catalogue.failed]
    blocked = [{"status": "blocked", "why": plugin.why} for plugin in catalogue.blocked]
    found = (*catalogue.plugins, *catalogue.failed, *catalogue.blocked)
    return [
        {"name": plugin.name, "version": plugin.version, "distribution": plugin.distribution, **record}
        for plugin, record in zip(found, [*loaded, *failed, *blocked], strict=True)
    ]


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The records as lines under a header; what a plugin offers takes a line for each kind."""
    lines: list[Sequence[str]] = [HEADER]
    for row in rows:
        first, *rest = offers(row)
        lines.append((row["name"], row["version"], row["distribution"], first))
        lines += [("", "", "", line) for line in rest]
    return "\n".join(aligned(lines))


def offers(row: Mapping[str, Any]) -> list[str]:
    """What stands in the last column."""
    if row["status"] == "ok":
        listed = [f"{kind} {', '.join(names)}" for kind, names in row["offers"].items()] or ["nothing"]
        return [line for text in listed for line in wrap(text, WIDE, subsequent_indent="  ")]
    if row["status"] == "blocked":
        return [row["why"]]
    return [f"failed: {row['why']}" + (f" ({row['where']})" if row["where"] else "")]
