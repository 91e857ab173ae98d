"""hookbrew: a small model out of a big one, by forward hooks, plugins and an event-driven loop.

    hb.tap(model, name="selector")      any layer of any model, by its module path
    hb.loss("kd_ce", temperature=8)     one term of what is minimised
    hb.callback("evaluate"), hb.augment("masking")
    hb.params(model, depth=2)           how large a model is, module by module
    hb.Surgery(model).swap("path", make) a module for another, and back again
    hb.Distillation(teacher, student, losses).fit(loader, epochs=3)

`import hookbrew` imports no torch; a name does when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hookbrew.distillation import Distillation
    from hookbrew.errors import HookbrewError
    from hookbrew.request import Task, augment, callback, loss, schedule
    from hookbrew.size import params
    from hookbrew.surgery import Surgery
    from hookbrew.taps import Taps, tap

__version__ = version("hookbrew")

HOMES = {
    "Distillation": "hookbrew.distillation",
    "HookbrewError": "hookbrew.errors",
    "Surgery": "hookbrew.surgery",
    "Taps": "hookbrew.taps",
    "Task": "hookbrew.request",
    "augment": "hookbrew.request",
    "callback": "hookbrew.request",
    "loss": "hookbrew.request",
    "params": "hookbrew.size",
    "schedule": "hookbrew.request",
    "tap": "hookbrew.taps",
}

__all__ = [
    "Distillation",
    "HookbrewError",
    "Surgery",
    "Taps",
    "Task",
    "augment",
    "callback",
    "loss",
    "params",
    "schedule",
    "tap",
]


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used (PEP 562)."""
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module 'hookbrew' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
