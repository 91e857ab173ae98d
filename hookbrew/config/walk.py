"""Where components and factories stand in a tree that nobody has checked yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from hookbrew.config.keys import Keys
from hookbrew.config.tree import COMPONENTS

FACTORIES: tuple[Keys, ...] = (("teacher",), ("student",), ("data", "train"), ("data", "evaluate"), ("data", "collate"))


def at(tree: Any, keys: Keys) -> Any:
    """The value at some keys; None where there is none."""
    for key in keys:
        if isinstance(key, int):
            tree = tree[key] if isinstance(tree, list) and key < len(tree) else None
        else:
            tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def factories(tree: dict[str, Any]) -> Iterator[tuple[Keys, dict[str, Any]]]:
    """Each factory table with its keys."""
    for keys in FACTORIES:
        table = at(tree, keys)
        if isinstance(table, dict):
            yield keys, table


def components(tree: dict[str, Any]) -> Iterator[tuple[Keys, str, dict[str, Any]]]:
    """Each component table with its keys and kind; anything that is no table is passed over."""
    for name in ("lr_schedule", "augments", "callbacks", "losses"):
        value = tree.get(name)
        items = [((name,), value)] if name == "lr_schedule" else [((name, i), item) for i, item in listed(value)]
        for keys, item in items:
            if isinstance(item, dict):
                yield keys, COMPONENTS[name], item
                if name == "losses":
                    yield from inner(keys, item)


def listed(value: Any) -> Iterator[tuple[int, Any]]:
    """The items of a list; none of anything else."""
    return iter(enumerate(value if isinstance(value, list) else ()))


def inner(keys: Keys, loss: dict[str, Any]) -> Iterator[tuple[Keys, str, dict[str, Any]]]:
    """The components in a table of `[[losses]]`: its projection, and the schedule of its weight."""
    projection, weight = loss.get("projection"), loss.get("weight")
    if isinstance(projection, str):
        projection = {"type": projection}
    if isinstance(projection, dict):
        yield (*keys, "projection"), COMPONENTS["projection"], projection
    if isinstance(weight, dict):
        yield (*keys, "weight"), COMPONENTS["schedule"], weight


def mapped(value: Any, keys: Keys, change: Callable[[Keys, str], str]) -> Any:
    """A copy of a value with every string in it changed."""
    if isinstance(value, str):
        return change(keys, value)
    if isinstance(value, dict):
        return {key: mapped(item, (*keys, key), change) for key, item in value.items()}
    if isinstance(value, list):
        return [mapped(item, (*keys, i), change) for i, item in enumerate(value)]
    return value
