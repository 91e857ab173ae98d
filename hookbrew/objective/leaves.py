"""Which parameters a loss reaches: what its graph of derivatives ends in."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def leaves(value: Tensor) -> set[int]:
    """The ids of the tensors that backward from this one would give a gradient."""
    waiting: list[Any] = [value.grad_fn]
    seen, found = set[Any](), set[int]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            found.add(id(leaf))
        waiting += [parent for parent, _ in node.next_functions]
    return found
