"""A plugin whose parts sleep, so that a profile has something to find; of each the least time is known."""

import time
from typing import ClassVar

from hookbrew.plugin import hookimpl, options

NAP = 0.03
"""Seconds."""


@options
class Slow:
    """A loss that sleeps."""

    takes: ClassVar[str] = "logits"

    def build(self):
        def slow(student, teacher):
            time.sleep(NAP)
            return (student - teacher).square().mean()

        return slow


@options
class Idle:
    """Sleeps in some event."""

    event: str = "step_end"
    """The event."""

    def build(self):
        def sleep(callback, state):
            time.sleep(NAP)

        return type("Idling", (), {self.event: sleep})()


@options
class Block:
    """Puts a file where the profile would be written."""

    def build(self):
        return Blocking()


class Blocking:
    def run_start(self, state):
        (state.folder / "profile").touch()


@options
class Doze:
    """Sleeps, and leaves the batch as it is."""

    def build(self):
        def doze(batch, generator):
            time.sleep(NAP)
            return batch

        return doze


@hookimpl
def hookbrew_register_losses(register):
    register("slow", f"{__name__}:Slow")


@hookimpl
def hookbrew_register_callbacks(register):
    register("idle", f"{__name__}:Idle")
    register("block", f"{__name__}:Block")


@hookimpl
def hookbrew_register_augments(register):
    register("doze", f"{__name__}:Doze")
