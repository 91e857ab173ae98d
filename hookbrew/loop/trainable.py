"""What the loop asks of an objective. It knows no loss."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hookbrew.loop.batch import Batch


class Named(Protocol):
    """A part of the loss, as far as the loop cares."""

    @property
    def name(self) -> str:
        """What it is called in logs."""


class Trainable(Protocol):
    """An objective as the loop sees it: named sums and counts, weights, and two models. It knows no loss."""

    student: nn.Module
    teacher: nn.Module | None

    @property
    def extras(self) -> nn.Module:
        """What is trained besides the student."""

    @property
    def leaves(self) -> set[int]:
        """The ids of the parameters that the loss of every batch reaches."""

    @property
    def terms(self) -> Sequence[Named]:
        """The parts of the loss."""

    @property
    def outputs(self) -> tuple[Any, Any]:
        """What student and teacher returned for the last batch."""

    def attached(self) -> AbstractContextManager[None]:
        """Hooks are on the models inside."""

    def counts(self, batch: Batch, samples: int, device: torch.device) -> Tensor:
        """Valid elements of a batch, (terms,)."""

    def forward(self, batch: Batch) -> None:
        """Run both models."""

    def part(self, batch: Batch, counts: Tensor, totals: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """Of a step, the loss of the batch that `forward` saw, and the means of its terms, detached, (terms,)."""

    def weighed(self, batch: Batch, samples: int, progress: float) -> tuple[Tensor, Tensor, list[float | Tensor]]:
        """The loss of a step that has no batch but the one that `forward` saw, its means and counts, (terms,)."""

    def weights(self, progress: float) -> list[float]:
        """The weight of each part at this point of the training."""

    def varying(self, progress: float) -> dict[str, float]:
        """What else moves in the course of the training, by name."""

    def predict(self, batch: Batch) -> tuple[Any, Any]:
        """The student's logits for a batch, and its labels or None."""
