"""What a log row says, kept on the device until a row is due: one transfer a row, none between."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Meter:
    """Sums over the steps since the last row."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self._names = names
        self._device = device
        self._clear()

    def _clear(self) -> None:
        self._sums = torch.zeros(len(self._names), device=self._device)
        self._counts = torch.zeros(len(self._names), device=self._device)
        self._loss = torch.zeros((), device=self._device)
        self._norm = torch.zeros((), device=self._device)
        self._spoilt = torch.zeros((), device=self._device)
        self._steps = self._samples = 0
        self._start = time.perf_counter()

    def add(self, sums: Tensor, counts: Tensor) -> None:
        """One batch: the sum and the count of each loss, (terms,)."""
        self._sums += sums.detach()
        self._counts += counts

    def step(self, loss: Tensor, norm: Tensor, samples: int) -> None:
        """One optimizer step: its loss, the norm of its gradients before clipping, and its samples."""
        self._loss += loss
        self._norm = norm
        self._spoilt += norm - norm  # nan from a norm that is not finite on, 0 before
        self._steps += 1
        self._samples += samples

    def row(self) -> dict[str, float]:
        """Means since the last row; the gradient norm is the last step's, nan if one of them was not finite.

        A loss that counted nothing, as of a task that was not drawn, has no mean and is left out. The only host sync
        of a step.
        """
        whole = torch.stack([self._loss / self._steps, self._norm + self._spoilt])
        packed = torch.cat([whole, self._sums / self._counts.clamp(min=1), self._counts]).tolist()
        means, counts = packed[2 : 2 + len(self._names)], packed[2 + len(self._names) :]
        record = {"loss": packed[0], "grad_norm": packed[1]}
        record |= {f"loss/{n}": mean for n, mean, count in zip(self._names, means, counts, strict=True) if count}
        record["samples_per_second"] = self._samples / (time.perf_counter() - self._start)
        self._clear()
        return record


def finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers for JSON, which has no nan and no infinity: None instead."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
