"""A plugin that sends the process it runs in a signal, or fails, at the end of chosen steps; and one that remembers."""

import os
import shutil
import signal

import torch

from hookbrew.plugin import hookimpl, options


@options
class Strike:
    """Sends a signal in some steps."""

    at: list[int]
    """The steps."""
    signal: str = "SIGTERM"
    """The signal."""
    once: bool = False
    """Whether a file in the run folder remembers that it was sent."""
    twice: bool = False
    """Whether to send it again at once."""
    event: str = "step_end"
    """When in the step."""

    def build(self):
        return type("Striking", (Striking,), {self.event: Striking._strike})(self)


class Striking:
    def __init__(self, options):
        self.options = options

    def _strike(self, state):
        sent = state.folder / "sent"
        if state.step in self.options.at and not sent.exists():
            if self.options.once:
                sent.touch()
            for _ in range(1 + self.options.twice):
                os.kill(os.getpid(), getattr(signal, self.options.signal))


@options
class Fall:
    """Raises in some event."""

    at: int
    """The step."""
    event: str = "step_end"
    """The event."""
    optional: bool = False
    """Whether the run goes on without it."""

    def build(self):
        def fall(callback, state):
            if state.step >= self.at:
                raise RuntimeError("here")

        return type("Falling", (), {self.event: fall, "optional": self.optional})()


@options
class Wreck:
    """Puts a file in the place of tensorboard's folder when an evaluation is over."""

    def build(self):
        return Wrecking()


class Wrecking:
    def eval_end(self, state):
        shutil.rmtree(state.folder / "tb")
        (state.folder / "tb").touch()


@options
class Remember:
    """Draws a number in each step, and adds it up."""

    def build(self):
        return Remembering()


class Remembering:
    sum = torch.zeros(())

    def step_end(self, state):
        self.sum = self.sum + torch.rand(())

    def state_dict(self):
        return {"sum": self.sum}

    def load_state_dict(self, state):
        self.sum = state["sum"]


@hookimpl
def hookbrew_register_callbacks(register):
    register("strike", f"{__name__}:Strike")
    register("fall", f"{__name__}:Fall")
    register("wreck", f"{__name__}:Wreck")
    register("remember", f"{__name__}:Remember")
