"""The entry module: it only registers names, and imports no torch."""

from __future__ import annotations

from collections.abc import Callable

from hookbrew.plugin import hookimpl

Register = Callable[[str, str], None]


@hookimpl
def hookbrew_register_losses(register: Register) -> None:
    """Imported when a configuration, `hookbrew plugins show` or a test names it."""
    register("gap", "hookbrew_gap.loss:Gap")


@hookimpl
def hookbrew_register_schedules(register: Register) -> None:
    """A schedule serves loss weights and the learning rate alike."""
    register("half_sine", "hookbrew_gap.schedule:HalfSine")


@hookimpl
def hookbrew_register_augments(register: Register) -> None:
    """Teacher and student see the same augmented batch."""
    register("reverse", "hookbrew_gap.augment:Reverse")


@hookimpl
def hookbrew_register_callbacks(register: Register) -> None:
    """A callback's methods are named for events."""
    register("patience", "hookbrew_gap.callback:Patience")
