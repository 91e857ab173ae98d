"""What pluggy passes over in silence, or finds only when the hook is called."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from hookbrew import words
from hookbrew.plugin.specs import HOOKS, PROJECT


class Fault(Exception):
    """A plugin that does not keep to the contract."""


def faults(module: object) -> Iterator[str]:
    """One sentence for each function of a plugin that is meant to be a hook and would not be called."""
    for name, function in inspect.getmembers_static(module):
        if not inspect.isroutine(function):
            continue
        marks = markers(function)
        if PROJECT in marks or name.startswith(f"{PROJECT}_"):
            fault = unmarked(name, marks) or mistaken(name, marks[PROJECT]) or unbound(module, name, function)
            if fault:
                yield fault


def unmarked(name: str, marks: dict[str, Any]) -> str | None:
    """A hook without our marker is never called."""
    if PROJECT in marks:
        return None
    if name not in HOOKS:
        return unknown(name)
    if marks:
        return f"{name} is marked for {words.several(map(repr, marks))}; use the hookimpl of hookbrew.plugin"
    return f"{name} lacks @hookimpl"


def mistaken(name: str, mark: dict[str, Any]) -> str | None:
    """A marked hook whose name nobody calls, or that wraps others."""
    hook = mark.get("specname") or name
    if hook not in HOOKS:
        return unknown(hook)
    if mark.get("wrapper") or mark.get("hookwrapper"):
        return f"{name} is a wrapper; a hook that registers names cannot be one"
    return None


def unbound(module: object, name: str, function: object) -> str | None:
    """A method of a class that was given instead of an instance of it."""
    if not inspect.isclass(module) or not inspect.isfunction(function):
        return None
    if next(iter(inspect.signature(function).parameters), "") != "self":
        return None
    return f"{module.__name__} is a class and {name} a method; give an instance of the class"


def unknown(name: str) -> str:
    """The sentence about a hook that does not exist."""
    return f"no hook is called {name!r}; {words.hint(name, HOOKS)}"


def markers(function: object) -> dict[str, Any]:
    """The projects whose hookimpl marks a function, with the options of the marker."""
    layers = (function, getattr(function, "__func__", None))
    names = {name: value for layer in layers for name, value in getattr(layer, "__dict__", {}).items()}
    return {name.removesuffix("_impl"): value for name, value in names.items() if name.endswith("_impl")}
