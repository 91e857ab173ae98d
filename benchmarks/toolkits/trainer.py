"""transformers' Trainer, its `compute_loss` overridden; projections belong to the model that it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from loader import Clocked
from side import Side
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback


class Whole(nn.Module):
    """The student and its projections; a forward gives the loss."""

    def __init__(self, side: Side) -> None:
        super().__init__()
        self.student, self.projections = side.student, side.projections
        self.compared = side.compared()

    def forward(self, **batch: Tensor) -> Tensor:
        """The loss."""
        return self.compared(batch)


def train(side: Side) -> Callable[[], None]:
    """Nothing is logged, saved or clipped."""

    class Distilling(Trainer):  # type: ignore[misc]  # untyped
        def compute_loss(self, model: nn.Module, inputs: Any, *_: Any, **__: Any) -> Tensor:
            found: Tensor = model(**inputs)
            return found

        def get_train_dataloader(self) -> Clocked:
            return side.loader

    given = {"report_to": [], "disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no"}
    cpu = side.loader.device.type == "cpu"
    arguments = TrainingArguments(max_steps=len(side.loader), max_grad_norm=0.0, use_cpu=cpu, **given)
    whole = Whole(side)
    optimizer = side.adamw(whole.parameters())
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    made = Distilling(whole, arguments, optimizers=(optimizer, constant))
    made.remove_callback(PrinterCallback)

    def fit() -> None:
        side.teacher.eval()
        made.train()

    return fit
