"""What a training really has in memory at one time: all that operations made, and what was there before."""

from contextlib import contextmanager

from hookbrew.estimate.live import Alive
from hookbrew.profile.spans import replaced
from hookbrew.run import run


def local(tensor):
    """Bytes that this process has of a tensor."""
    mine = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return mine.numel() * mine.element_size()


class Peaks:
    """Goes around the loop of a run, in the place of a profile."""

    most = 0

    @contextmanager
    def around(self, loop, where):
        models = [loop.objective.student, loop.objective.extras, *filter(None, [loop.objective.teacher])]
        there = {id(t): local(t) for model in models for t in (*model.parameters(), *model.buffers())}
        before, fire = sum(there.values()), loop.dispatch.fire
        with Alive() as alive:

            def told(event, state):
                if event == "run_start":
                    alive.since()
                if event == "step_end":  # what the end of the run gathers and writes is none of a step's
                    self.most = max(self.most, before + alive.since())
                fire(event, state)

            with replaced(loop.dispatch, "fire", told):
                yield


def peak(file, sets, catalogue):
    """Bytes, the most in any step of a run."""
    found = Peaks()
    run(file, sets, catalogue=catalogue, quiet=True, profile=found)
    return found.most
