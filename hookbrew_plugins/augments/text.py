"""Augmentations of padded token ids, (B, L): `lists` for batches. B batch, L tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import torch
from torch import Generator

from hookbrew.plugin import at_least, choice, fraction, options, positive
from hookbrew_plugins.augments import orders
from hookbrew_plugins.augments.orders import Order, chances
from hookbrew_plugins.augments.rows import Batch, Keys, Rearranging

Augment = Callable[[Batch, Generator], Batch]


@options
class Text:
    """Options of every augmentation of token ids."""

    keep: tuple[int, ...] = ()
    """Ids that are never touched: `tokenizer.all_special_ids`."""
    ids: str = "input_ids"
    """The key of the batch that holds the ids."""
    mask: str = "attention_mask"
    """The key that is 0 at padding, which is never touched; empty if there is none."""

    def keys(self, name: str) -> Keys:
        """What these say; name: that of the augmentation."""
        return Keys(name=name, ids=self.ids, mask=self.mask, keep=self.keep)


@options
class Moving(Text):
    """Options of an augmentation that gives tokens other places."""

    follow: dict[str, int] = attrs.field(factory=dict)
    """Keys with a value for each token, which goes with it, and what fills a place without one: {tags = -100}.
    Labels of tokens are named here: {labels = -100}, soft ones with 0. token_type_ids and special_tokens_mask follow by
    themselves."""
    stay: tuple[str, ...] = ()
    """Keys shaped as the ids that are not of their tokens, as labels of another text are, or of as many classes."""

    def moving(self, name: str, order: Order, **more: Any) -> Augment:
        """The augmentation, by an order of the tokens that are not kept."""
        return Rearranging(keys=self.keys(name), order=order, follow=self.follow, stay=self.stay, **more)


@options
class Shortening(Moving):
    """Options of an augmentation that drops tokens."""

    pad: int = at_least(0)
    """The id that fills a row that got shorter, with 0 in the mask: `tokenizer.pad_token_id`. Without a mask, it
    tells what is padding."""
    side: str | None = choice("left", "right", default=None)
    """Where padding goes; without it, to the left if a row of the batch begins with padding, else to the right."""

    def shortening(self, name: str, order: Order) -> Augment:
        """The augmentation, by an order of fewer tokens."""
        return self.moving(name, order, pad=self.pad, side=self.side)


@options
class Masking(Text):
    """Replace each token by the mask token with probability p, independently (TinyBERT, TextBrewer `masking`)."""

    mask_token: int = at_least(0)
    """The id that is put in: `tokenizer.mask_token_id`."""
    p: float = fraction(0.1)
    """The probability of a token to be replaced."""

    def build(self) -> Augment:
        """The augmentation, as a function of a batch and a generator."""
        return partial(masked, keys=self.keys("masking"), mask_token=self.mask_token, p=self.p)


@options
class Deleting(Shortening):
    """Drop each token with probability p, independently, but not the last one of a row (TextBrewer `deleting`)."""

    p: float = fraction(0.1)
    """The probability of a token to be dropped."""

    def build(self) -> Augment:
        """The augmentation, as a function of a batch and a generator."""
        return self.shortening("deleting", partial(orders.survivors, p=self.p))


@options
class NGramSampling(Shortening):
    """Keep a run of 1 to 5 tokens from anywhere in the row and drop the others (TextBrewer `n_gram_sampling`)."""

    l_ng: tuple[int, ...] = attrs.field(default=(1, 2, 3, 4, 5), validator=orders.lengths)
    """The lengths; a shorter row is kept whole."""
    p_ng: tuple[float, ...] = attrs.field(default=(0.2, 0.2, 0.2, 0.2, 0.2), validator=chances("l_ng"))
    """The probability of each length."""

    def build(self) -> Augment:
        """The augmentation, as a function of a batch and a generator."""
        return self.shortening("n_gram_sampling", partial(orders.span, p_ng=self.p_ng, l_ng=self.l_ng))


@options
class ShortDisorder(Moving):
    """Move tokens by one or two places (TextBrewer `short_disorder`)."""

    p: tuple[float, ...] = attrs.field(default=(0.9, 0.1, 0.0, 0.0, 0.0), validator=chances(len(orders.CASES)))
    """The probabilities of abc, bac, cba, cab and bca for the tokens abc that come next, from left to right."""

    def build(self) -> Augment:
        """The augmentation, as a function of a batch and a generator."""
        return self.moving("short_disorder", partial(orders.shuffled, p=self.p))


@options
class LongDisorder(Moving):
    """Swap the two halves of runs of tokens (TextBrewer `long_disorder`)."""

    p: float = fraction(0.1)
    """The probability, at each token that is reached from the left, that the run which begins there is changed."""
    length: float = positive(20.0)
    """How many tokens a run has, or up to 1, which share of the row's; rounded down, then up to an even number."""

    def build(self) -> Augment:
        """The augmentation, as a function of a batch and a generator."""
        return self.moving("long_disorder", partial(orders.swapped, p=self.p, length=self.length))


def masked(batch: Batch, generator: Generator, *, keys: Keys, mask_token: int, p: float) -> Batch:
    """A new batch whose ids, (B, L), are partly replaced by `mask_token`; all other tensors are those of `batch`.

    Raises DataError when the batch lacks the ids or the mask, or the mask has another shape than the ids.
    """
    ids = keys.wanted(batch, keys.ids, "ids")
    free = keys.there(batch, ids) & ~keys.kept(ids)
    draw = torch.rand(ids.shape, generator=generator, device=generator.device).to(ids.device)
    return {**batch, keys.ids: ids.masked_fill(free & (draw < p), mask_token)}
