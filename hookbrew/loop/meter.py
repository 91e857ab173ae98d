"""What a log row says: numbers of steps stay where they are until one is due. One transfer a row, none between."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Counts = Sequence[float | Tensor] | Tensor
"""One for each term, (terms,): numbers, or scalars on a device, or all in one tensor there."""
Parts = list[tuple[Tensor, Counts]]
"""Means and counts of the terms, (terms,) each, of every forward pass of a step."""
FULL = 1000
"""So many steps are kept at most: with fewer rows than that, their numbers are fetched in between."""
TOTALS = ("sums", "counts", "loss", "norm", "spoilt", "made", "skipped", "streak")
NUMBERS = ("steps", "samples")


class Kept(NamedTuple):
    """One step."""

    parts: Parts
    loss: Tensor
    norm: Tensor


class Meter:
    """Sums over the steps since the last row, of which those last made wait to be added up.

    They are added one after the other in Python's floats: whatever lies between, a checkpoint too, the sum is the same.
    """

    def __init__(self, names: Sequence[str], device: torch.device, *, skipping: bool = False) -> None:
        """skipping: whether updates that are not finite are left out, and counted; else they spoil the row."""
        self._names = names
        self._device = device
        self._skipping = skipping
        self._skipped = self._streak = 0
        self._clear()

    def _clear(self) -> None:
        self._kept = list[Kept]()
        self._sums, self._counts = [0.0] * len(self._names), [0.0] * len(self._names)
        self._loss = self._norm = self._spoilt = 0.0
        self._made = self._steps = self._samples = 0
        self._start = time.perf_counter()

    def step(self, parts: Parts, loss: Tensor, norm: Tensor, samples: int) -> None:
        """One optimizer step: its parts, its loss, the norm of its gradients before clipping, and its samples.

        Nobody may write into any of these tensors afterwards.
        """
        self._steps += 1
        self._samples += samples
        self._kept.append(Kept(parts, loss, norm))
        if len(self._kept) == FULL:
            self._settle()

    def _settle(self) -> None:
        """Add up the steps that wait; one transfer for all their numbers."""
        kept, self._kept = self._kept, []
        parts = [each for step in kept for part in step.parts for each in part]
        fetch = read if self._device.type == "cpu" else fetched  # a transfer is dear, and so are views of many scalars
        whole, *told = fetch([[each for step in kept for each in (step.loss, step.norm)], *parts])
        place = 0
        for step, loss, norm in zip(kept, whole[::2], whole[1::2], strict=True):
            first, place = place, place + 2 * len(step.parts)
            if self._skipping and not math.isfinite(loss + norm):
                self._skipped, self._streak = self._skipped + 1, self._streak + 1
                continue
            self._made, self._streak, self._loss, self._norm = self._made + 1, 0, self._loss + loss, norm
            self._spoilt += 0.0 * norm  # nan from a norm that is not finite on, for 0 * inf is nan; 0 before
            for part in range(first, place, 2):
                for term, (mean, count) in enumerate(zip(told[part], told[part + 1], strict=True)):
                    self._sums[term] += mean * count
                    self._counts[term] += count

    def state_dict(self) -> dict[str, Any]:
        """What has been added since the last row, and the updates left out so far."""
        self._settle()
        totals = {name: torch.tensor(getattr(self, f"_{name}"), dtype=torch.float64) for name in TOTALS}
        return totals | {name: getattr(self, f"_{name}") for name in NUMBERS}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another one was."""
        for name in TOTALS:
            setattr(self, f"_{name}", state[name].tolist())
        for name in NUMBERS:
            setattr(self, f"_{name}", state[name])

    def share(self, others: Sequence[Mapping[str, Any]] | None) -> None:
        """Add what other processes had summed up; None where one of the others has taken this process's part over."""
        for name in ("sums", "counts"):
            parts = [] if others is None else [getattr(self, f"_{name}"), *(other[name].tolist() for other in others)]
            setattr(self, f"_{name}", [sum(each) for each in zip(*parts, strict=True)] or [0.0] * len(self._names))

    def row(self, total: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> dict[str, float]:
        """Means since the last row; the gradient norm is the last step's, nan if one of them was not finite.

        A loss that counted nothing, as of a task that was not drawn, has no mean and is left out. `skipped` is the
        number of updates left out so far, `streak` that of the last ones in a row. The only host sync of a step.
        total: gives the sum of a tensor over the processes that train together.
        """
        self._settle()
        wide = torch.float32 if self._device.type == "mps" else torch.float64  # that one has no float64
        sums, counts = total(torch.tensor([self._sums, self._counts], dtype=wide, device=self._device)).tolist()
        loss = self._loss / self._made if self._made else math.nan
        record = {"loss": loss, "grad_norm": self._norm + self._spoilt}
        record |= {f"loss/{n}": s / count for n, s, count in zip(self._names, sums, counts, strict=True) if count}
        if self._skipping:
            record |= {"skipped": float(self._skipped), "streak": float(self._streak)}
        record["samples_per_second"] = self._samples / (time.perf_counter() - self._start)
        self._clear()
        return record


def read(groups: Sequence[Counts]) -> list[list[float]]:
    """The numbers of each group, which lie in the host's memory."""
    return [
        group.tolist() if isinstance(group, Tensor) else [n.item() if isinstance(n, Tensor) else n for n in group]
        for group in groups
    ]


def fetched(groups: Sequence[Counts]) -> list[list[float]]:
    """The numbers of each group, brought here from a device in one transfer."""
    lying = [g if isinstance(g, Tensor) else [n for n in g if isinstance(n, Tensor)] for g in groups]
    there = [mine if isinstance(mine, Tensor) else torch.stack(mine) for mine in lying if len(mine)]
    found = iter(torch.cat(there).tolist() if there else ())
    return [
        [next(found) for _ in group]
        if isinstance(group, Tensor)
        else [next(found) if isinstance(n, Tensor) else n for n in group]
        for group in groups
    ]


def spoilt(norm: Tensor, loss: Tensor) -> Tensor:
    """Whether one of the two is not finite, a bool scalar on their device: x - x and 0 * x are then nan, else 0.

    torch.isfinite says the same with thrice as many kernels, and this runs every step.
    """
    return torch.isnan(torch.add(norm - norm, loss, alpha=0))


def finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers for JSON, which has no nan and no infinity: None instead."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
