"""Where and how exactly a run computes: device, number format, threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from hookbrew.errors import ConfigError, Problem
from hookbrew.taps import sharded


def chosen(name: str) -> torch.device:
    """`auto` is CUDA, then MPS, then the CPU; any other name is torch's.

    Raises ConfigError for a device that this machine or torch does not have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError([Problem("train.device", f"no device {name!r} here: {reason}")]) from error
    return device


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """bf16 or fp16 autocast, or none. `auto` is bf16 on a GPU that computes in it."""
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if fast else "fp32"
    if precision == "fp32" and not torch.is_autocast_enabled(device.type):
        return nullcontext()
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


@contextmanager
def compiled(models: Iterable[nn.Module]) -> Iterator[None]:
    """Forwards of these models are compiled inside, with the hooks that are on them, and are as before outside.

    One that the user compiled is left alone. Raises ConfigError for one that FSDP2 has sharded.
    """
    mine = [model for model in dict.fromkeys(models) if model._compiled_call_impl is None]
    if any(map(sharded, mine)):
        raise ConfigError([Problem("train.compile", "a sharded model is not compiled; compile the other, or none")])
    try:
        for model in mine:
            model.compile()
        yield
    finally:
        for model in mine:
            model._compiled_call_impl = None  # torch has no public way back


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """torch uses `number` CPU threads inside, and as many as before outside; None changes nothing."""
    before = torch.get_num_threads()
    try:
        if number is not None:
            torch.set_num_threads(number)
        yield
    finally:
        torch.set_num_threads(before)
