"""The loader that times every loop: it notes the time at each batch, so that all pay the same for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import attrs
import torch
from torch import Tensor


def quiet(_: int) -> None:
    """Nothing is done at a batch."""


@attrs.define
class Clocked:
    """Gives batches, and notes the time at each: that of the process on a CPU, else that of the clock."""

    batches: Sequence[dict[str, Tensor]]
    steps: int
    device: torch.device = attrs.field(factory=lambda: torch.device("cpu"))
    warm: int = 2
    """How many of the first steps are left out."""
    seen: Callable[[int], None] = quiet
    """Called before each batch, with its number."""
    clock: Callable[[], float] | None = None
    """What it notes in place of the time."""
    times: list[float] = attrs.field(factory=list)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.times.clear()
        for step in range(self.steps):
            self.seen(step)
            self.times.append(self.now(settled=step in (self.warm, self.steps - 1)))
            yield self.batches[step % len(self.batches)]

    def now(self, *, settled: bool) -> float:
        """settled: whether what a GPU was told has to be done; asked twice a round, since it stops the host."""
        if self.clock is not None:
            return self.clock()
        if self.device.type != "cuda":
            return time.process_time()
        if settled:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def __call__(self) -> float:
        """Seconds a step, without the last, after which nobody asks for a batch."""
        return (self.times[-1] - self.times[self.warm]) / (self.steps - 1 - self.warm)

    def least(self) -> float:
        """Those of the fastest step; on a GPU, which is not waited for at each, the same as of all."""
        if self.device.type == "cuda":
            return self()
        return min(after - before for before, after in pairwise(self.times[self.warm :]))
