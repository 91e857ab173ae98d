"""What a step computes, and how fast a device computes."""

from __future__ import annotations

import time
from contextlib import ExitStack

import torch
from torch.utils.flop_counter import FlopCounterMode

from hookbrew.compare.flops import opened
from hookbrew.estimate.sizes import dropping
from hookbrew.loop import Batch, Loop, size_of
from hookbrew.loop.step import Step
from hookbrew.profile.ruler import Part, wait
from hookbrew.profile.spans import computed

TIMES = 4
"""Products that are timed; the fastest counts."""


def operations(loop: Loop, step: Step, batch: Batch) -> dict[str, float]:
    """Floating-point operations of a pass for each sample: of each forward, and the rest, which is backward's."""
    ruler = Counter()
    with ExitStack() as stack:
        stack.enter_context(opened())
        stack.enter_context(dropping(loop, []))
        for part in getattr(loop.objective, "parts", {}).values():
            stack.enter_context(computed(part, "", ruler))
        stack.enter_context(ruler.counter)
        step.passes(loop.state, [step.prepare(loop.state, batch, 0)])
    whole = ruler.whole()
    found = {name: ruler.found.get(name, 0) for name in ("teacher", "student", "losses")}
    size = size_of(batch)
    return {name: count / size for name, count in {**found, "backward": whole - sum(found.values())}.items()}


class Counter:
    """A ruler of operations in place of time."""

    def __init__(self) -> None:
        self.counter = FlopCounterMode(display=False)
        self.found: dict[str, int] = {}
        self._open: list[tuple[str, int]] = []

    def whole(self) -> int:
        """All until now."""
        return int(self.counter.get_total_flops())

    def begin(self, part: Part) -> int:
        """A part begins."""
        group, name = part
        self._open.append((group if group != "models" else "student" if name == "student" else "teacher", self.whole()))
        return len(self._open) - 1

    def end(self, mark: int) -> None:
        """It ends."""
        name, before = self._open.pop()
        self.found[name] = self.found.get(name, 0) + self.whole() - before

    def become(self, part: Part) -> None:
        """What lies between is not asked for."""

    def since(self, part: Part) -> None:
        """Nor is what has passed."""


def rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of the device in a product of two large matrices: the best of some."""
    size = 8192 if device.type == "cuda" else 1024
    one = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(TIMES):
        before = clock(device)
        torch.mm(one, one)
        best = min(best, clock(device) - before)
    return 2 * size**3 / best


def clock(device: torch.device) -> float:
    """The time when the device has done what it was given."""
    wait(device)
    return time.perf_counter()
