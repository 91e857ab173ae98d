"""The learning rate: a pure function of progress, or a scheduler object that the user made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import torch
from torch.optim.lr_scheduler import LRScheduler

from hookbrew.progress import Schedule


@attrs.define
class Rate:
    """Sets the learning rate of every group: its own base, times the schedule."""

    optimizer: torch.optim.Optimizer
    schedule: Schedule | None = None
    scheduler: LRScheduler | None = None
    """An object of torch that moves the rates itself; stepped once an optimizer step."""
    _bases: list[float] = attrs.field(init=False, factory=list)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """The base rates come back at the end, so that a second training starts from them."""
        self._bases = [group["lr"] for group in self.optimizer.param_groups]
        try:
            yield
        finally:
            if self.schedule is not None:
                self.set_all(1.0)

    def set(self, progress: float) -> None:
        """Before a step."""
        if self.schedule is not None:
            self.set_all(self.schedule(progress))

    def set_all(self, multiplier: float) -> None:
        """Each group's base times one number."""
        for group, base in zip(self.optimizer.param_groups, self._bases, strict=True):
            group["lr"] = base * multiplier

    def advance(self) -> None:
        """After a step."""
        if self.scheduler is not None:
            self.scheduler.step()

    @property
    def current(self) -> float:
        """The rate of the first group, as a number."""
        return float(self.optimizer.param_groups[0]["lr"])
