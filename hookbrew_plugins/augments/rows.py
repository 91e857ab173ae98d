"""Orders of tokens, applied to the rows of a padded batch. B batch, L tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Generator, Tensor

from hookbrew import words
from hookbrew.errors import DataError
from hookbrew_plugins.augments.orders import Order

Batch = dict[str, Tensor]

FOLLOW = {"token_type_ids": 0, "special_tokens_mask": 1}
"""Keys that follow the tokens when they are integers shaped as the ids, and what stands where there is no token.
Labels are none of them: those of a whole text, (B, C), may have as many classes as there are tokens."""
STAY = ("position_ids",)
"""Keys that are shaped as the ids and say nothing about a token."""


@attrs.frozen(kw_only=True)
class Keys:
    """Which tensors of a batch hold a text, and which of its tokens stay where they are."""

    name: str
    """The augmentation, for messages."""
    ids: str
    mask: str
    keep: tuple[int, ...]

    def wanted(self, batch: Mapping[str, Tensor], key: str, option: str) -> Tensor:
        """The tensor under `key`; raises DataError when the batch has none, naming the option that names it."""
        if key not in batch:
            raise DataError(f"{self.name}: the batch has no key {key!r} (option {option!r}); {words.hint(key, batch)}")
        return batch[key]

    def there(self, batch: Batch, ids: Tensor, pad: int | None = None) -> Tensor:
        """Where there are tokens and no padding, bool (B, L): by the mask, or, without one, by the id `pad`.

        Raises DataError when the mask is missing, or has another shape than the ids.
        """
        if not self.mask:
            return torch.ones_like(ids, dtype=torch.bool) if pad is None else ids != pad
        mask = self.wanted(batch, self.mask, "mask")
        if mask.shape != ids.shape:
            raise DataError(
                f"{self.name}: the mask {self.mask!r} is {tuple(mask.shape)}, and the ids are {tuple(ids.shape)}"
            )
        return mask.bool()

    def kept(self, ids: Tensor) -> Tensor:
        """Where an id is one of `keep`, bool; as (B, L)."""
        return torch.isin(ids, torch.tensor(self.keep, dtype=ids.dtype, device=ids.device))


@attrs.frozen(kw_only=True)
class Rearranging:
    """An augmentation of a batch: each row's tokens are put into an order of their own, and the rest is padding.

    Tokens in `keys.keep` are not counted in the order and lose no neighbour but those that are dropped. A row stays
    at its end of the padding: at the left with padding to its right, or at the right.
    """

    keys: Keys
    order: Order
    follow: Mapping[str, int]
    """Keys of tensors (B, L, ...) whose values go where their tokens go, each with what fills the places left."""
    stay: tuple[str, ...]
    """Keys of tensors shaped as the ids that are left alone."""
    pad: int | None = None
    """The id that fills the places left; None for orders that leave none."""
    side: str | None = None
    """Where padding goes, `left` or `right`; None for where the batch has it."""

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """A new batch. Raises DataError when keys are missing or do not fit."""
        ids = self.keys.wanted(batch, self.keys.ids, "ids")
        there = self.keys.there(batch, ids, self.pad)
        fills = {self.keys.ids: self.pad or 0, **self.followers(batch, ids)}
        if self.keys.mask:
            fills[self.keys.mask] = 0
        sources, gone = self.sources(there, there & ~self.keys.kept(ids), generator)
        return {**batch, **{key: taken(batch[key], sources, gone, fill) for key, fill in fills.items()}}

    def followers(self, batch: Batch, ids: Tensor) -> dict[str, int]:
        """The keys that follow the tokens, with their fills.

        Raises DataError when one is missing or has no tokens, or a tensor is shaped as the ids and nobody knows
        whether it follows: labels would silently be those of other tokens.
        """
        for key in self.follow:
            shape = tuple(self.keys.wanted(batch, key, "follow").shape)
            if shape[:2] != ids.shape:
                raise DataError(
                    f"{self.keys.name}: {key!r} (option 'follow') is {shape}; expected to begin with the shape of the "
                    f"ids, {tuple(ids.shape)}"
                )
        settled = {self.keys.ids, self.keys.mask, *self.follow, *self.stay, *STAY}
        found = dict(self.follow)
        if "labels" not in settled:
            self.require_told(batch.get("labels"), ids)
        for key, tensor in batch.items():
            if key in settled or not isinstance(tensor, Tensor):
                continue
            if tensor.shape == ids.shape and not tensor.is_floating_point():
                if key not in FOLLOW:
                    raise DataError(
                        f"{self.keys.name}: {key!r} is {tuple(ids.shape)} as the ids are; name it in the option "
                        "'follow', with what fills places without a token, if it goes with its tokens, or in 'stay'"
                    )
                found[key] = FOLLOW[key]
        return found

    def require_told(self, labels: Any, ids: Tensor) -> None:
        """Raise DataError for labels that may be of tokens, or of texts with as many classes: nobody said which.

        Soft ones (B, C) are of texts.
        """
        if not isinstance(labels, Tensor) or labels.shape[:2] != ids.shape or labels.dim() > 3:
            return
        soft = labels.is_floating_point()
        if labels.dim() == 3 or not soft:
            none = 0 if soft else -100
            raise DataError(
                f"{self.keys.name}: 'labels' is {tuple(labels.shape)}, and the ids are {tuple(ids.shape)}; write "
                f'follow = {{ labels = {none} }} if each is of its token, or stay = ["labels"] if they are of the text'
            )

    def sources(self, there: Tensor, free: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """For each place the one that its token comes from, long (B, L), and whether its token is gone, bool (B, L)."""
        left = self.side == "left" or (self.side is None and bool((there.any(dim=1) & ~there[:, :1].all(dim=1)).any()))
        sources, gone = [], []
        for present, movable in zip(there.tolist(), free.tolist(), strict=True):
            places = [place for place, token in enumerate(present) if token]
            kept = filled(places, movable, self.order(sum(movable), generator))
            where = places[len(places) - len(kept) :] if left else places[: len(kept)]
            sources.append([*range(len(present))])
            for place, source in zip(where, kept, strict=True):
                sources[-1][place] = source
            gone.append([False] * len(present))
            for place in {*places}.difference(where):
                gone[-1][place] = True
        found = torch.tensor(sources, dtype=torch.long, device=there.device).view_as(there)
        return found, torch.tensor(gone, dtype=torch.bool, device=there.device).view_as(there)


def filled(places: Sequence[int], movable: Sequence[bool], order: Sequence[int]) -> list[int]:
    """The places of the tokens of a row that stay, in their new order: movable ones as `order` says, the others
    between the same neighbours."""
    free = [place for place in places if movable[place]]
    following = iter(order)
    slots = {free[number] for number in order}  # a dropped token leaves no slot: what follows moves up
    return [
        free[next(following)] if movable[place] else place for place in places if place in slots or not movable[place]
    ]


def taken(tensor: Tensor, sources: Tensor, gone: Tensor, fill: int) -> Tensor:
    """The values (B, L, ...) of other places of the same row, and `fill` where a token is gone."""
    rows = torch.arange(len(sources), device=tensor.device).unsqueeze(1)
    moved = tensor[rows, sources.to(tensor.device)]
    hole = gone.to(tensor.device).view(*gone.shape, *(1 for _ in tensor.shape[2:]))
    return moved.masked_fill(hole, fill)
