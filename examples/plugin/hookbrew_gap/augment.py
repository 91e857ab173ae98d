"""An augmenter: a new batch out of a batch, by a generator that the run seeds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hookbrew.plugin import fraction, options

Batch = dict[str, Tensor]


@options
class Reverse:
    """Reads some samples backwards; padding stays where it is."""

    probability: float = fraction(0.1)
    """The share of samples that are reversed."""
    ids: str = "input_ids"
    """The key of the token ids, (B, L)."""
    mask: str = "attention_mask"
    """The key of the mask, (B, L)."""

    def build(self) -> Callable[[Batch, torch.Generator], Batch]:
        """The function on batches."""

        def augment(batch: Batch, generator: torch.Generator) -> Batch:
            ids, mask = batch[self.ids], batch[self.mask]
            places = torch.arange(ids.shape[1]).expand_as(ids)
            there = mask.bool()
            ends = [torch.where(there, places, fill) for fill in (ids.shape[1], -1)]  # padding may be on either side
            first, last = ends[0].amin(1, keepdim=True), ends[1].amax(1, keepdim=True)
            backwards = (first + last - places).where(there, places)
            chosen = torch.rand(len(ids), 1, generator=generator) < self.probability
            return {**batch, self.ids: ids.gather(1, backwards.where(chosen, places))}

        return augment
