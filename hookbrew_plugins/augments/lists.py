"""Augmentation of a text that is a list of tokens or ids, as in TextBrewer's `data_utils` (Yang et al. 2020).

Each function returns a new list and leaves its input alone; from a tensor (L,), a list of numbers. Random numbers come
from `generator`, or from torch's own if there is none. A text with tokens never becomes an empty one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Generator, Tensor

from hookbrew_plugins.augments import orders

Tokens = Sequence[Any] | Tensor


def masking(
    tokens: Tokens, p: float = 0.1, mask: object = "[MASK]", *, generator: Generator | None = None
) -> list[Any]:
    """Replace each token by `mask` with probability p, independently.

    Raises ValueError when p is no probability.
    """
    orders.require_chance("p", p)
    found = listed(tokens)
    draws = orders.uniform(len(found), generator)
    return [mask if draw < p else token for token, draw in zip(found, draws, strict=True)]


def deleting(tokens: Tokens, p: float = 0.1, *, generator: Generator | None = None) -> list[Any]:
    """Drop each token with probability p, independently; if none is left, one of them at random stays.

    Raises ValueError when p is no probability.
    """
    orders.require_chance("p", p)
    return arranged(tokens, lambda size: orders.survivors(size, generator, p=p))


def n_gram_sampling(
    tokens: Tokens,
    p_ng: Sequence[float] = (0.2, 0.2, 0.2, 0.2, 0.2),
    l_ng: Sequence[int] = (1, 2, 3, 4, 5),
    *,
    generator: Generator | None = None,
) -> list[Any]:
    """A run of l tokens from anywhere in the text, l one of `l_ng` with the probabilities `p_ng`; the whole text if
    it is shorter.

    Raises ValueError when `p_ng` is not one probability for each length, all summing to 1, or a length is below 1.
    """
    orders.require_lengths("l_ng", l_ng)
    orders.require_chances("p_ng", p_ng, len(l_ng))
    return arranged(tokens, lambda size: orders.span(size, generator, p_ng=p_ng, l_ng=l_ng))


def short_disorder(
    tokens: Tokens, p: Sequence[float] = (0.9, 0.1, 0.0, 0.0, 0.0), *, generator: Generator | None = None
) -> list[Any]:
    """From left to right, make abc, the tokens that come next, into abc, bac, cba, cab or bca, with the probabilities
    p, and go on behind what was moved; of the last two tokens, any but the first swaps them.

    Raises ValueError when p is not five probabilities that sum to 1.
    """
    orders.require_chances("p", p, len(orders.CASES))
    return arranged(tokens, lambda size: orders.shuffled(size, generator, p=p))


def long_disorder(
    tokens: Tokens, p: float = 0.1, length: float = 20, *, generator: Generator | None = None
) -> list[Any]:
    """From left to right, with probability p swap the halves of the next `length` tokens and go on behind them; else
    go on by one token. `orders.swapped` says how a length is rounded.

    >>> long_disorder([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], p=1, length=0.4)
    [2, 3, 0, 1, 6, 7, 4, 5, 8, 9, 10]

    Raises ValueError when p is no probability or the length not above 0.
    """
    orders.require_chance("p", p)
    orders.require_length("length", length)
    return arranged(tokens, lambda size: orders.swapped(size, generator, p=p, length=length))


def arranged(tokens: Tokens, order: Callable[[int], list[int]]) -> list[Any]:
    """The tokens that stay, in their order."""
    found = listed(tokens)
    return [found[number] for number in order(len(found))]


def listed(tokens: Tokens) -> list[Any]:
    """A list of its own: what tensors and arrays call a copy is a view, through which their owner would see changes."""
    found: list[Any] = tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)
    return found
