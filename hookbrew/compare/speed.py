"""How fast models are beside each other: in turn, on the same batches, each round compared with itself.

Times of a shared machine say little; that of two models in one round says more, and how far the rounds lie apart
says how much.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import attrs
import torch

from hookbrew.compare.memory import peak

SURE = 0.98
"""Half of 1.96: the rank of a median is binomial, n / 2 +- 1.96 sqrt(n) / 2 with 95 % confidence."""
WARM = 2
"""Forwards on each batch before anything is timed."""

Call = Callable[[], object]


@attrs.frozen
class Spread:
    """The median of several rounds, and where the true one lies with 95 % confidence; no distribution is assumed."""

    middle: float
    low: float
    high: float


@attrs.frozen(kw_only=True)
class Speed:
    """One model at one batch size."""

    size: int
    """Samples in a batch."""
    latency: Spread
    """Seconds of a forward."""
    throughput: float
    """Samples a second at that latency."""
    ratio: Spread | None
    """The latency over that of the first model in the same round; None for itself."""
    memory: int
    """The most bytes of a forward beyond the weights, over the batches."""


def timed(calls: Mapping[str, Sequence[Call]], size: int, *, rounds: int, device: torch.device) -> dict[str, Speed]:
    """The speed of all models: by name a call for each batch, on the same batches in the same order."""
    names, batches = list(calls), calls[next(iter(calls))]
    memory = {name: max(peak(call, device) for call in calls[name]) for name in names}
    for _ in range(WARM):
        for name in names:
            for call in calls[name]:
                call()
    times: dict[str, list[float]] = {name: [] for name in names}
    with uncollected():
        for number in range(rounds):
            lap, place = divmod(number, len(batches))
            first = (lap + place) % len(names)  # each is the first to run equally often, on each batch
            for name in (*names[first:], *names[:first]):
                times[name].append(clocked(calls[name][place], device))
            gc.collect(0)
    found = {}
    for name in names:
        latency = spread(times[name])
        ratio = None if name == names[0] else spread([a / b for a, b in zip(times[name], times[names[0]], strict=True)])
        throughput = size / latency.middle
        found[name] = Speed(size=size, latency=latency, throughput=throughput, ratio=ratio, memory=memory[name])
    return found


def spread(values: Sequence[float]) -> Spread:
    """The median and its interval."""
    each = sorted(values)
    half = SURE * len(each) ** 0.5
    low, high = max(0, int(len(each) / 2 - half)), min(len(each) - 1, int(len(each) / 2 + half))
    return Spread(median(each), each[low], each[high])


def clocked(call: Call, device: torch.device) -> float:
    """Seconds of one call, by the clock or by two CUDA events. Freeing the result is not in."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(device)
        start.record()
        result: Any = call()
        end.record()
        torch.cuda.synchronize(device)
        return float(start.elapsed_time(end)) / 1000
    awaited(device)
    before = time.perf_counter()
    result = call()
    awaited(device)
    taken = time.perf_counter() - before
    del result
    return taken


def awaited(device: torch.device) -> None:
    """Wait for a device that computes by itself."""
    if device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is looked for inside: one model would pay for what all have left behind."""
    on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()
