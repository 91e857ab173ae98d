"""What a training really has in memory at one time, beside which an estimate can be laid."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from hookbrew.estimate.live import Alive
from hookbrew.estimate.sizes import nbytes
from hookbrew.loop import Loop, State
from hookbrew.profile.spans import replaced


class Peak:
    """Goes around the loop of a run, in the place of a profile; on the CPU, where each operation is seen."""

    def __init__(self) -> None:
        self.most = 0
        """Bytes of this process, the most in any step: what was there before, and all that operations made."""

    @contextmanager
    def around(self, loop: Loop, where: Path) -> Iterator[None]:
        """A training is looked at inside."""
        models = [loop.state.student, loop.objective.extras, *filter(None, [loop.state.teacher])]
        there = {id(tensor): local(tensor) for model in models for tensor in (*model.parameters(), *model.buffers())}
        before, fire = sum(there.values()), loop.dispatch.fire
        with Alive() as alive:

            def told(event: str, state: State) -> None:
                if event == "run_start":
                    alive.since()
                if event == "step_end":  # what the end of a run gathers and writes is none of a step's
                    self.most = max(self.most, before + alive.since())
                fire(event, state)

            with replaced(loop.dispatch, "fire", told):
                yield


def local(tensor: Tensor) -> int:
    """Bytes that this process has of a tensor."""
    return nbytes(tensor.to_local() if hasattr(tensor, "to_local") else tensor)
