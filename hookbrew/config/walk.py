"""Where components and factories stand in a tree that nobody has checked yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from hookbrew import words
from hookbrew.config.keys import Keys
from hookbrew.config.tree import COMPONENTS, PLACEMENT

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
    for place in parts(tree):
        teachers = at(tree, (*place, "teachers"))
        named = [(*place, "teachers", name) for name in teachers] if isinstance(teachers, dict) else []
        for keys in [*((*place, *keys) for keys in FACTORIES), *named]:
            table = at(tree, keys)
            if isinstance(table, dict):
                yield keys, table
        for index, loss in listed(at(tree, (*place, "losses"))):
            table = at(loss, ("projection",))
            if isinstance(table, dict) and manufactured(table):
                yield (*place, "losses", index, "projection"), table
    for index, edit in listed(tree.get("surgery")):
        for key, table in edit.items() if isinstance(edit, dict) else ():
            if isinstance(table, dict) and "factory" in table:
                yield ("surgery", index, key), table


def manufactured(table: dict[str, Any]) -> bool:
    """Whether the table of a projection is a factory's, perhaps with the name of its key misspelt."""
    return "factory" in table or ("type" not in table and words.nearest("factory", table) is not None)


def parts(tree: dict[str, Any]) -> list[Keys]:
    """Where data, losses and teachers stand: at the root, and in each task."""
    tasks = tree.get("tasks")
    return [(), *(("tasks", name) for name in tasks)] if isinstance(tasks, dict) else [()]


def components(tree: dict[str, Any]) -> Iterator[tuple[Keys, str, dict[str, Any]]]:
    """Each component table with its keys and kind; anything that is no table is passed over."""
    if isinstance(rate := tree.get("lr_schedule"), dict):
        yield ("lr_schedule",), COMPONENTS["lr_schedule"], rate
    lists: list[Keys] = [("augments",), ("callbacks",), ("surgery",), *((*place, "losses") for place in parts(tree))]
    for keys in lists:
        for index, item in listed(at(tree, keys)):
            if isinstance(item, dict):
                yield (*keys, index), COMPONENTS[str(keys[-1])], item
                if keys[-1] == "losses":
                    yield from inner((*keys, index), item)


def listed(value: Any) -> Iterator[tuple[int, Any]]:
    """The items of a list; none of anything else."""
    return iter(enumerate(value if isinstance(value, list) else ()))


def inner(keys: Keys, loss: dict[str, Any]) -> Iterator[tuple[Keys, str, dict[str, Any]]]:
    """The components in a table of `[[losses]]`: its projection, and the schedules of its weight and its options."""
    projection, weight = loss.get("projection"), loss.get("weight")
    if isinstance(projection, str):
        projection = {"type": projection}
    if isinstance(projection, dict) and not manufactured(projection):
        yield (*keys, "projection"), COMPONENTS["projection"], projection
    if isinstance(weight, dict):
        yield (*keys, "weight"), COMPONENTS["schedule"], weight
    for name, value in loss.items():
        # only the loss knows which options are numbers, and it is not loaded here: these two keys tell
        if name not in PLACEMENT and isinstance(value, dict) and {"type", "base"} <= value.keys():
            yield (*keys, name), COMPONENTS["schedule"], value


def mapped(value: Any, keys: Keys, change: Callable[[Keys, str], str]) -> Any:
    """A copy of a value with every string in it changed."""
    if isinstance(value, str):
        return change(keys, value)
    if isinstance(value, dict):
        return {key: mapped(item, (*keys, key), change) for key, item in value.items()}
    if isinstance(value, list):
        return [mapped(item, (*keys, i), change) for i, item in enumerate(value)]
    return value
