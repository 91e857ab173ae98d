"""What the benchmarks share: variants in turn in one process, ratios of CPU time to the first, bytes kept alive.

Absolute times of a shared machine say little; the ratio of two variants that ran one right after the other says
more, and how far the ratios of two equal variants lie from 1 says how much.
"""

from __future__ import annotations

import gc
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class Variant(NamedTuple):
    """One way to do the work."""

    call: Callable[[], Any]
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    """What is set up before the call and taken down after it, both untimed: hooks."""


class Ratio(NamedTuple):
    """The time of a variant over that of the first variant in the same round."""

    fastest: float
    """Minimum over minimum."""
    middle: float
    """Median of the ratios of the rounds."""
    low: float
    """With `high`: where the true median lies, with 95 % confidence (from order statistics, no distribution)."""
    high: float
    milliseconds: float
    """The median time itself; for orientation, it depends on who else uses the machine."""


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call: CPU time of the process, or time between two CUDA events. Freeing the result is not in."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        result = call()
        end.record()
        torch.cuda.synchronize(device)
        taken = start.elapsed_time(end) / 1000
    else:
        before = time.process_time()
        result = call()
        taken = time.process_time() - before
    del result
    return taken


def rounds(variants: Mapping[str, Variant], count: int, device: torch.device) -> dict[str, list[float]]:
    """Times of all variants, one call of each in each round; one round warms up.

    Each round has an order of its own, as a variant leaves caches and heap to the next in a state of its own.
    """
    names, draw = list(variants), Random(0)
    times: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()  # else one variant pays for what all have left behind
    try:
        for number in range(-1, count):
            for name in draw.sample(names, len(names)):
                with variants[name].around():
                    taken = timed(variants[name].call, device)
                if number >= 0:
                    times[name].append(taken)
            gc.collect(0)
    finally:
        gc.enable()
    return times


def ratio(times: list[float], plain: list[float]) -> Ratio:
    """Compare round by round, so that a slow minute of the machine touches both sides."""
    each = sorted(a / b for a, b in zip(times, plain, strict=True))
    half = 0.98 * len(each) ** 0.5  # the rank of a median is binomial: n/2 +- 1.96 sqrt(n)/2
    low, high = max(0, int(len(each) / 2 - half)), min(len(each) - 1, int(len(each) / 2 + half))
    return Ratio(min(times) / min(plain), median(each), each[low], each[high], 1000 * median(times))


def verdict(found: Ratio, low: float, high: float) -> str:
    """Whether the ratio lies between two bounds: "met" or "missed" if the whole interval says so, else "unclear"."""
    if low <= found.low and found.high <= high:
        return "met"
    return "missed" if found.high < low or found.low > high else "unclear"


class Operations(TorchDispatchMode):
    """Counts the operations of torch that run while it is on, those of autograd too."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.made += 1
        return func(*args, **(kwargs or {}))


class Births(TorchDispatchMode):
    """Sees every tensor that an operation returns, and knows later which of their memory is still there."""

    def __init__(self) -> None:
        super().__init__()
        self.born: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.born.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        return output

    def alive(self, *before: torch.Tensor) -> int:
        """Bytes of the storages that have not been freed, without those of tensors that were there before."""
        gc.collect()
        old = {tensor.untyped_storage()._cdata for tensor in before}
        return sum(size for where, (ref, size) in self.born.items() if where not in old and not ref.expired())


class Peak(Births):
    """Counts the bytes of all storages that operations have made and that are alive, after each; keeps the most."""

    def __init__(self, *before: torch.Tensor) -> None:
        super().__init__()
        self.old = {tensor.untyped_storage()._cdata for tensor in before}
        self.most = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = super().__torch_dispatch__(func, types, args, kwargs)
        for where in [where for where, (ref, _) in self.born.items() if ref.expired()]:
            del self.born[where]
        sizes = [size for where, (_, size) in self.born.items() if where not in self.old]
        self.most, self.largest = max(self.most, sum(sizes)), max(self.largest, *sizes, 0)
        return output


def kept(call: Callable[[], Any], *before: torch.Tensor) -> int:
    """Bytes that a call makes and that are alive while its result is; counted by torch, whoever holds them."""
    with Births() as births:
        result = call()
    alive = births.alive(*before)
    del result
    return alive


def microseconds(call: Callable[[], Any], count: int, device: torch.device) -> float:
    """The least time of `count` calls."""
    return 1e6 * min(timed(call, device) for _ in range(count))


def machine(device: torch.device) -> dict[str, Any]:
    """Where and with what a run was made."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else name,
        "cuda": device.type == "cuda",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def write(path: str | None, report: Mapping[str, Any]) -> None:
    """The report as JSON, where asked for."""
    if path:
        Path(path).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def plotting() -> Any:
    """matplotlib's pyplot, for files; leaves the program if it is not installed."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("--plot needs matplotlib: python -m pip install matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot
