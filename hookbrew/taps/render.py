"""The module tree as text in columns, with what the aliases mean below it, and as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from hookbrew.taps import spelling
from hookbrew.taps.tree import Node, Outline
from hookbrew.taps.walk import join
from hookbrew.words import aligned, several


def render(outline: Outline) -> str:
    """The tree in aligned columns, one line a node, outputs last, because some are long; then the aliases."""
    rows: list[tuple[str, ...]] = [("module", "class", "parameters", "selector", "ports", "output")]
    rows += [cells(depth, node) for depth, node in outline.nodes()]
    if not any(ports for *_, ports, _ in rows[1:]):
        rows = [(*row[:4], row[5]) for row in rows]
    meanings = list(aliases(outline))
    return "\n".join([*aligned(rows), *([""] if meanings else []), *aligned(meanings)])


def cells(depth: int, node: Node) -> tuple[str, ...]:
    """One line of text, by column."""
    output = " | ".join(node.shapes) if node.calls else "never called"
    times = f" x{node.calls}" if node.calls > 1 else ""
    size = f"{node.parameters:,}" if node.parameters else ""
    each = f"{node.count} x {size}" if node.count > 1 and size else size
    return "  " * depth + node.name, node.kind, each, node.selector, " ".join(node.ports), output + times


def aliases(outline: Outline) -> Iterator[tuple[str, str]]:
    """Each alias of the model, and what it means."""
    for stack, prefix in zip(outline.layout.stacks, outline.layout.prefixes, strict=True):
        size, hidden, inner = len(stack.blocks), join(prefix, "hidden"), join(prefix, "attention")
        where = stack.path or "model"
        blocks = f"{where}#*: {size} x {stack.kind}" if stack.shared else f"{where}: {size} {stack.kind}"
        if not taken(outline, hidden):
            yield f"{hidden}[0:{size + 1}]", f"{blocks}, {hidden}[0] is the input of the first"
        if all(block.attentions for block in stack.blocks) and not taken(outline, inner):
            yield f"{inner}[0:{size}]", several(spelling.attention(stack), most=2)
    if outline.logits:
        yield "logits", f"{outline.logits.selector} {outline.logits.shape}"


def taken(outline: Outline, alias: str) -> bool:
    """Whether the model has a child of this name, which goes before the alias."""
    return any(f"{node.path}.".startswith(f"{alias}.") for _, node in outline.nodes())


def as_json(outline: Outline) -> dict[str, Any]:
    """The outline as plain dictionaries and lists: `model`, `stacks` with their prefixes, `logits` and `tree`."""
    found = attrs.asdict(outline.layout)
    stacks = [
        {"prefix": prefix, **stack} for prefix, stack in zip(outline.layout.prefixes, found["stacks"], strict=True)
    ]
    logits = outline.logits and attrs.asdict(outline.logits)
    return {"model": found["model"], "stacks": stacks, "logits": logits, "tree": attrs.asdict(outline.root)}
