"""The random states of a process, as plain values that load with `weights_only=True`."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

CPU = torch.device("cpu")


def randomness(device: torch.device) -> dict[str, Any]:
    """The states of Python, NumPy (if it is in use), torch, and the device."""
    version, numbers, gauss = random.getstate()
    found: dict[str, Any] = {"python": [version, list(numbers), gauss], "torch": torch.get_rng_state()}
    if numpy := sys.modules.get("numpy"):
        name, keys, *rest = numpy.random.get_state()
        found["numpy"] = [name, keys.tolist(), *rest]
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def restore(states: dict[str, Any], device: torch.device) -> None:
    """Set the states that `randomness` gave; one that has no place here is left alone."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "numpy" in states:
        import numpy as np

        name, keys, *rest = states["numpy"]
        np.random.set_state((name, keys, *rest))
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    torch.set_rng_state(states["torch"])


def sow(seed: int) -> None:
    """Let Python, NumPy (if it is in use) and torch on every device draw from this seed on."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def kept_random(*devices: torch.device) -> Iterator[None]:
    """The random states of Python, NumPy, torch and these devices come back at the end; no other device is woken up."""
    before = randomness(CPU), [randomness(device) for device in devices if device.type == "cuda"]
    try:
        yield
    finally:
        for states, device in zip(before[1], (d for d in devices if d.type == "cuda"), strict=True):
            restore(states, device)
        restore(before[0], CPU)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python, NumPy (if it is in use) and torch's CPU draw from this seed inside, and go on as before outside."""
    before = randomness(CPU)
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would move every device
    try:
        yield
    finally:
        restore(before, CPU)
