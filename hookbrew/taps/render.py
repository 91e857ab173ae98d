"""The module tree as text in columns, and as plain data."""

from __future__ import annotations

from typing import Any

import attrs

from hookbrew.taps.tree import Node, Outline


def render(outline: Outline) -> str:
    """The tree in aligned columns, one line a node; outputs come last, because some are long."""
    rows = [("module", "class", "parameters", "selector", "output")]
    rows += [cells(depth, node) for depth, node in outline.nodes()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def cells(depth: int, node: Node) -> tuple[str, str, str, str, str]:
    """One line of text, by column."""
    output = " | ".join(node.shapes) if node.calls else "never called"
    times = f" x{node.calls}" if node.calls > 1 else ""
    size = f"{node.parameters:,}" if node.parameters else ""
    each = f"{node.count} x {size}" if node.count > 1 and size else size
    return "  " * depth + node.name, node.kind, each, node.selector, output + times


def as_json(outline: Outline) -> dict[str, Any]:
    """The tree as plain dictionaries and lists."""
    return attrs.asdict(outline.root)
