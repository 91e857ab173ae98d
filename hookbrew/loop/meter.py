"""What a log row says, kept on the device until a row is due: one transfer a row, none between."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Parts = list[tuple[Tensor, Tensor]]
"""Sums and counts of the terms, (terms,) each, of every forward pass of a step."""
TENSORS = ("sums", "counts", "loss", "norm", "spoilt", "made", "skipped", "streak")
NUMBERS = ("steps", "samples")


class Meter:
    """Sums over the steps since the last row."""

    def __init__(self, names: Sequence[str], device: torch.device, *, skipping: bool = False) -> None:
        """skipping: whether updates that are not finite are left out, and counted; else they spoil the row."""
        self._names = names
        self._device = device
        self._skipping = skipping
        self._skipped, self._streak = self._zeros(), self._zeros()
        self._clear()

    def _zeros(self, *size: int) -> Tensor:
        return torch.zeros(size, device=self._device)

    def _clear(self) -> None:
        self._sums, self._counts = self._zeros(len(self._names)), self._zeros(len(self._names))
        self._loss, self._norm, self._spoilt, self._made = (self._zeros() for _ in range(4))
        self._steps = self._samples = 0
        self._start = time.perf_counter()

    def step(self, parts: Parts, loss: Tensor, norm: Tensor, samples: int) -> None:
        """One optimizer step: its parts, its loss, the norm of its gradients before clipping, and its samples."""
        self._steps += 1
        self._samples += samples
        if self._skipping:
            self._weigh(parts, loss, norm)
            return
        for sums, counts in parts:
            self._sums += sums
            self._counts += counts
        self._loss += loss
        self._norm = norm
        self._spoilt.add_(norm, alpha=0)  # nan from a norm that is not finite on, for 0 * inf is nan; 0 before

    def _weigh(self, parts: Parts, loss: Tensor, norm: Tensor) -> None:
        """A step whose update was left out adds to nothing but the number of those; the device alone knows."""
        bad = spoilt(norm, loss)
        for sums, counts in parts:
            self._sums += sums.masked_fill(bad, 0.0)
            self._counts += counts.masked_fill(bad, 0.0)
        self._loss += loss.masked_fill(bad, 0.0)
        self._norm = torch.where(bad, self._norm, norm)
        self._made += ~bad
        self._skipped += bad
        self._streak = (self._streak + 1) * bad

    def state_dict(self) -> dict[str, Any]:
        """What has been added since the last row, and the updates left out so far."""
        return {name: getattr(self, f"_{name}") for name in (*TENSORS, *NUMBERS)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another one was."""
        for name in TENSORS:
            setattr(self, f"_{name}", state[name].to(self._device))
        for name in NUMBERS:
            setattr(self, f"_{name}", state[name])

    def share(self, others: Sequence[Mapping[str, Any]] | None) -> None:
        """Add what other processes had summed up; None where one of the others has taken this process's part over."""
        for name in ("sums", "counts"):
            parts = [] if others is None else [getattr(self, f"_{name}"), *(o[name].to(self._device) for o in others)]
            setattr(self, f"_{name}", sum(parts, start=self._zeros(len(self._names))))

    def row(self, total: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> dict[str, float]:
        """Means since the last row; the gradient norm is the last step's, nan if one of them was not finite.

        A loss that counted nothing, as of a task that was not drawn, has no mean and is left out. `skipped` is the
        number of updates left out so far, `streak` that of the last ones in a row. The only host sync of a step.
        total: gives the sum of a tensor over the processes that train together.
        """
        sums, counts = total(torch.stack([self._sums, self._counts]))
        loss = self._loss / (self._made if self._skipping else self._steps)
        whole = [loss, self._norm + self._spoilt, self._skipped, self._streak]
        packed = torch.cat([torch.stack(whole), sums / counts.clamp(min=1), counts]).tolist()
        means, numbers = packed[4 : 4 + len(self._names)], packed[4 + len(self._names) :]
        record = {"loss": packed[0], "grad_norm": packed[1]}
        record |= {f"loss/{n}": mean for n, mean, count in zip(self._names, means, numbers, strict=True) if count}
        if self._skipping:
            record |= {"skipped": packed[2], "streak": packed[3]}
        record["samples_per_second"] = self._samples / (time.perf_counter() - self._start)
        self._clear()
        return record


def spoilt(norm: Tensor, loss: Tensor) -> Tensor:
    """Whether one of the two is not finite, a bool scalar on their device: x - x and 0 * x are then nan, else 0.

    torch.isfinite says the same with thrice as many kernels, and this runs every step.
    """
    return torch.isnan(torch.add(norm - norm, loss, alpha=0))


def finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers for JSON, which has no nan and no infinity: None instead."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
