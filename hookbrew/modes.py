"""Models lent for a look: evaluation mode and random states inside, everything as it was outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from hookbrew.chance import kept_random

__all__ = ["evaluating", "kept"]


@contextmanager
def kept(*models: nn.Module | None) -> Iterator[None]:
    """Each module's own training flag comes back at the end, whatever happens inside."""
    modes = [(module, module.training) for model in models if model is not None for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def evaluating(*models: nn.Module | None) -> Iterator[None]:
    """Evaluation mode; training flags and random states come back at the end."""
    devices = {p.device for model in models if model is not None for p in model.parameters()}
    with kept(*models), kept_random(*devices):
        for model in models:
            if model is not None:
                model.eval()
        yield
