"""The learning rate: a pure function of progress, or a scheduler object that the user made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from hookbrew.errors import ConfigError, Problem
from hookbrew.progress import Schedule

OWNER = "loss"
"""The key of a parameter group that holds the name of the one loss whose parameters these are."""


@attrs.define
class Rate:
    """Sets the learning rate of every group: its own base, times the schedule."""

    optimizer: torch.optim.Optimizer
    schedule: Schedule | None = None
    scheduler: LRScheduler | None = None
    """An object of torch that moves the rates itself; stepped once an optimizer step."""
    current: float = attrs.field(init=False, default=0.0)
    """The rate of the first group in the step that is running or was last made."""
    own: dict[str, Any] = attrs.field(init=False, factory=dict)
    """The rates of groups that belong to one loss in that step: `lr/NAME`."""
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
        self.current = self.optimizer.param_groups[0]["lr"]
        self.own = {f"lr/{group[OWNER]}": group["lr"] for group in self.optimizer.param_groups if OWNER in group}

    def set_all(self, multiplier: float) -> None:
        """Each group's base times one number."""
        for group, base in zip(self.optimizer.param_groups, self._bases, strict=True):
            group["lr"] = base * multiplier

    def advance(self) -> None:
        """After a step."""
        if self.scheduler is not None:
            self.scheduler.step()


def rated(optimizer: torch.optim.Optimizer, rate: Any) -> Rate:
    """What moves the learning rate; raises ConfigError for something that would not, or cannot."""
    problem = None
    if isinstance(rate, ReduceLROnPlateau):
        problem = "ReduceLROnPlateau waits for a metric, and is stepped without one; take another"
    elif isinstance(rate, LRScheduler) and rate.optimizer is not optimizer:
        problem = "this scheduler moves the rate of another optimizer: give that as optimizer="
    elif not isinstance(rate, LRScheduler) and rate is not None and not callable(rate):
        problem = f"expected hb.schedule(...), a function of progress or a scheduler of torch; got {rate!r}"
    if problem:
        raise ConfigError([Problem("lr_schedule", problem)])
    return Rate(optimizer, scheduler=rate) if isinstance(rate, LRScheduler) else Rate(optimizer, rate)
