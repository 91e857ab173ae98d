"""A training as its parts see it: each takes from it what it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from hookbrew.config import Train
from hookbrew.loop.accord import Accord
from hookbrew.loop.batch import Batch
from hookbrew.loop.data import Feed
from hookbrew.loop.dispatch import Dispatch
from hookbrew.loop.meter import Meter
from hookbrew.loop.rate import Rate
from hookbrew.loop.state import State
from hookbrew.loop.trainable import Trainable
from hookbrew.loop.update import Update
from hookbrew.ranks import Ranks


class Training(Protocol):
    """What a training consists of."""

    objective: Trainable
    optimizer: torch.optim.Optimizer
    rate: Rate
    train: Train
    device: torch.device
    evaluate: Feed | None
    dispatch: Dispatch
    ranks: Ranks
    accord: Accord
    state: State
    update: Update
    meter: Meter

    @property
    def prepared(self) -> Callable[[State, Batch, int], Batch]:
        """Augments a batch and brings it to the device."""
