"""Lightning, with all that costs time switched off by `barebones`."""

from __future__ import annotations

import logging
from collections.abc import Callable

import lightning
import torch
from side import Side
from torch import Tensor

for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
    logging.getLogger(name).setLevel(logging.ERROR)


class Module(lightning.LightningModule):
    """The student and its projections; the teacher is no part of it, so that it stays in evaluation mode."""

    def __init__(self, side: Side) -> None:
        super().__init__()
        self.student, self.projections = side.student, side.projections
        self.optimizer, self.compared = side.adamw(), side.compared()

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        """The loss of a batch."""
        return self.compared(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The same in each call, so that it keeps its moments."""
        return self.optimizer


def train(side: Side) -> Callable[[], None]:
    """A Trainer of its own for each call: one does not begin again."""
    module = Module(side)

    def fit() -> None:
        side.student.train()
        side.teacher.eval()
        kind = "gpu" if side.loader.device.type == "cuda" else "cpu"
        trainer = lightning.Trainer(max_steps=len(side.loader), accelerator=kind, devices=1, barebones=True)
        trainer.fit(module, side.loader)

    return fit
