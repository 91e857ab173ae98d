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
            backwards = (mask.sum(1, keepdim=True) - 1 - places).where(mask.bool(), places)
            chosen = torch.rand(len(ids), 1, generator=generator) < self.probability
            return {**batch, self.ids: ids.gather(1, backwards.where(chosen, places))}

        return augment
