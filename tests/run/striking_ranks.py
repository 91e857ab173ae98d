"""A plugin whose callbacks let the second of several processes die or hang, or all of them be slow; and strike."""

import os
import signal
import time

from hookbrew.plugin import hookimpl, options
from tests.run import striking


@options
class Die:
    """Kills the second process at the end of a step, the first time that it is started."""

    at: int
    """The step."""

    def build(self):
        return Dying(self.at)


class Dying:
    def __init__(self, at):
        self.at = at

    def step_end(self, state):
        if state.step == self.at and state.ranks.rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)


@options
class Hang:
    """Lets the second process wait for ever at the end of a step."""

    at: int
    """The step."""

    def build(self):
        return Hanging(self.at)


class Hanging(Dying):
    def step_end(self, state):
        if state.step == self.at and state.ranks.rank == 1:
            time.sleep(600)


@options
class Slow:
    """Waits at the end of each step."""

    seconds: float
    """How long."""

    def build(self):
        return Waiting(self.seconds)


class Waiting:
    def __init__(self, seconds):
        self.seconds = seconds

    def step_end(self, state):
        time.sleep(self.seconds)


@hookimpl
def hookbrew_register_callbacks(register):
    register("strike", striking.Strike)
    register("die", Die)
    register("hang", Hang)
    register("slow", Slow)
