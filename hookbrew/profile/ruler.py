"""Time, shared out among the parts of a step: what passes belongs to the innermost part that is open.

So the parts add up to the step, whatever is nested in whatever.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch.profiler import record_function

Part = tuple[str, str]
"""A group, and a name in it: `("losses", "kd_ce")`; no name for what stands by itself, or is left of a group."""

LOOP: Part = ("loop itself", "")
APART = ("evaluation", "checkpoint", "epoch", "run")
"""Groups that are no part of a step, though they may come between two."""


class Ruler(Protocol):
    """What is told where the parts of a step begin and end."""

    def begin(self, part: Part) -> int:
        """A part begins, inside of what is open; returns what `end` needs."""

    def end(self, mark: int) -> None:
        """It ends, with all that is open inside of it."""

    def become(self, part: Part) -> None:
        """What is outermost is another part from now on."""

    def since(self, part: Part) -> None:
        """What passed since the last word belongs to this part."""


@contextmanager
def within(ruler: Ruler, part: Part) -> Iterator[None]:
    """A part, as long as this is open."""
    mark = ruler.begin(part)
    try:
        yield
    finally:
        ruler.end(mark)


class Clock:
    """Seconds of each part. A device that computes by itself is waited for wherever one begins or ends."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._open = device, [LOOP]
        self._taken: dict[Part, float] = {}
        self._last = self._began = self._now()

    def begin(self, part: Part) -> int:
        """A part begins; within what is apart from the step, all but that is of one piece."""
        self._charge(self._open[-1])
        around = self._open[-1]
        self._open.append(around if around[0] in APART and part[0] not in APART else part)
        return len(self._open) - 1

    def end(self, mark: int) -> None:
        """It ends."""
        self._charge(self._open[-1])
        del self._open[max(1, mark) :]

    def become(self, part: Part) -> None:
        """What is outermost is another part from now on."""
        self._charge(self._open[-1])
        self._open[0] = part

    def since(self, part: Part) -> None:
        """What passed since the last word belongs to this part."""
        self._charge(part)

    def step(self) -> tuple[float, dict[Part, float]]:
        """Seconds of the step that ends now, as the clock has it, and of its parts; another one begins."""
        self._charge(self._open[-1])
        taken, whole = self._taken, self._last - self._began
        self._taken, self._open, self._began = {}, [LOOP], self._last
        return whole, taken

    def _charge(self, part: Part) -> None:
        now = self._now()
        self._taken[part] = self._taken.get(part, 0.0) + now - self._last
        self._last = now

    def _now(self) -> float:
        wait(self._device)
        return time.perf_counter()


class Labels:
    """The same parts as names in a trace of torch's profiler, which keeps the times itself."""

    def __init__(self) -> None:
        self._open: list[AbstractContextManager[Any]] = []

    def begin(self, part: Part) -> int:
        """A part begins."""
        label: AbstractContextManager[Any] = record_function(": ".join(("hookbrew", *filter(None, part))))
        label.__enter__()
        self._open.append(label)
        return len(self._open) - 1

    def end(self, mark: int) -> None:
        """It ends."""
        while len(self._open) > mark:
            self._open.pop().__exit__(None, None, None)

    def become(self, part: Part) -> None:
        """What is inside the step is another part from now on; within another part nothing changes."""
        if len(self._open) == 2:
            self.end(1)
            self.begin(part)

    def since(self, part: Part) -> None:
        """A trace is not written anew."""

    def step(self, number: int) -> None:
        """The step that was open ends, and another one begins."""
        self.end(0)
        self.begin(("step", str(number)))
        self.begin(LOOP)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
