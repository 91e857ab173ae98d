"""Augmentation of padded token ids. B batch, L tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Generator, Tensor

from hookbrew import words
from hookbrew.errors import DataError
from hookbrew.plugin import at_least, fraction, options

Batch = dict[str, Tensor]


@options
class Masking:
    """Replace each token by the mask token with probability p, independently (TinyBERT, TextBrewer `masking`)."""

    mask_token: int = at_least(0)
    """The id that is put in: `tokenizer.mask_token_id`."""
    p: float = fraction(0.1)
    """The probability of a token to be replaced."""
    keep: tuple[int, ...] = ()
    """Ids that are never replaced: `tokenizer.all_special_ids`."""
    ids: str = "input_ids"
    """The key of the batch that holds the ids."""
    mask: str = "attention_mask"
    """The key that is 0 at padding, which is never replaced; empty if no batch has padding."""

    def build(self) -> Callable[[Batch, Generator], Batch]:
        """The augmentation, as a function of a batch and a generator."""
        return partial(
            masked, mask_token=self.mask_token, p=self.p, keep=self.keep, ids_key=self.ids, mask_key=self.mask
        )


def masked(
    batch: Batch,
    generator: Generator,
    *,
    mask_token: int,
    p: float = 0.1,
    keep: tuple[int, ...] = (),
    ids_key: str = "input_ids",
    mask_key: str = "attention_mask",
) -> Batch:
    """A new batch whose ids, (B, L), are partly replaced by `mask_token`; all other tensors are those of `batch`.

    Raises DataError when the batch lacks one of the two keys, or the mask has another shape than the ids.
    """
    ids = wanted(batch, ids_key, "ids")
    free = spared(ids, keep).logical_not()
    if mask_key:
        free &= unpadded(batch, ids, mask_key)
    draw = torch.rand(ids.shape, generator=generator, device=generator.device).to(ids.device)
    return {**batch, ids_key: ids.masked_fill(free & (draw < p), mask_token)}


def unpadded(batch: Batch, ids: Tensor, key: str) -> Tensor:
    """Where the mask is not 0, bool (B, L); raises DataError when it has another shape than the ids."""
    mask = wanted(batch, key, "mask")
    if mask.shape != ids.shape:
        raise DataError(f"masking: the mask {key!r} is {tuple(mask.shape)}, and the ids are {tuple(ids.shape)}")
    return mask.bool()


def spared(ids: Tensor, keep: tuple[int, ...]) -> Tensor:
    """Where an id is one of `keep`, bool; as (B, L)."""
    return torch.isin(ids, torch.tensor(keep, dtype=ids.dtype, device=ids.device))


def wanted(batch: Batch, key: str, option: str) -> Tensor:
    """The tensor under `key`; raises DataError when the batch has none, naming the option that names it."""
    if key not in batch:
        raise DataError(f"masking: the batch has no key {key!r} (option {option!r}); {words.hint(key, batch)}")
    return batch[key]
