"""Which tokens of a text stay, and in what order: the rules of TextBrewer's `data_utils` (Yang et al. 2020).

An order is a list of numbers of tokens, each once: [2, 0] is the third token and then the first, and no other.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Generator

Order = Callable[[int, Generator | None], list[int]]
"""A number of tokens and a generator, torch's own if None, to an order."""

CASES = ((0,), (1, 0), (2, 1, 0), (2, 0, 1), (1, 2, 0))
"""What `shuffled` makes of the tokens abc that come next: a, ba, cba, cab, bca."""


def survivors(size: int, generator: Generator | None, *, p: float) -> list[int]:
    """Each token is dropped with probability p, independently; if none is left, one of them at random stays."""
    kept = [number for number, draw in enumerate(uniform(size, generator)) if draw >= p]
    return kept if kept or not size else [below(size, generator)]


def span(size: int, generator: Generator | None, *, p_ng: Sequence[float], l_ng: Sequence[int]) -> list[int]:
    """A run of l tokens from anywhere, l one of `l_ng` with the probabilities `p_ng`; all of a text that is shorter."""
    (number,) = pieces(uniform(1, generator), p_ng)
    length = min(l_ng[number], size)
    start = below(size - length + 1, generator)
    return [*range(start, start + length)]


def shuffled(size: int, generator: Generator | None, *, p: Sequence[float]) -> list[int]:
    """From left to right, one of CASES with the probabilities p, then on behind it; any but the first swaps the last
    two tokens if only two are left."""
    order, cases = list[int](), pieces(uniform(size, generator), p)
    while (start := len(order)) < size:
        behind = size - 1 - start
        case = cases[start] if behind > 1 else min(cases[start], behind)
        order += [start + step for step in CASES[case]]
    return order


def swapped(size: int, generator: Generator | None, *, p: float, length: float) -> list[int]:
    """From left to right, with probability p the halves of the next `length` tokens change places, and it goes on
    behind them; else one token on.

    A length up to 1 is a share of the text. It is rounded down to a whole number and then up to an even one. A text
    that is shorter stays as it is, and so does one of which the share is less than a token.
    """
    half = (int(length * size if length <= 1 else length) + 1) // 2
    order, draws = list[int](), uniform(size, generator)
    while (start := len(order)) < size:
        if half and start + 2 * half <= size and draws[start] < p:
            order += [*range(start + half, start + 2 * half), *range(start, start + half)]
        else:
            order.append(start)
    return order


def pieces(draws: Sequence[float], chances: Sequence[float]) -> list[int]:
    """The number of the chance that each draw from [0, 1) falls on; never one that is 0."""
    bounds = [*accumulate(chances)]
    last = max(number for number, chance in enumerate(chances) if chance)
    return [min(bisect_right(bounds, draw * bounds[-1]), last) for draw in draws]


def uniform(size: int, generator: Generator | None) -> list[float]:
    """Numbers from [0, 1), in float64 so that a probability is met as it was written."""
    return torch.rand(size, generator=generator, device=place(generator), dtype=torch.float64).tolist()


def below(limit: int, generator: Generator | None) -> int:
    """A number from 0 to limit - 1, each as likely."""
    return int(torch.randint(limit, (), generator=generator, device=place(generator)))


def place(generator: Generator | None) -> torch.device:
    """Where random numbers are drawn."""
    return torch.device("cpu") if generator is None else generator.device


def require_chance(name: str, value: float) -> None:
    """Raise ValueError unless it is a probability."""
    if not 0 <= value <= 1:
        raise ValueError(f"'{name}' must be from 0 to 1: {value}")


def require_chances(name: str, values: Sequence[float], count: int) -> None:
    """Raise ValueError unless these are `count` probabilities that sum to 1."""
    total = math.fsum(values)
    if len(values) != count or min(values, default=-1) < 0 or not math.isclose(total, 1, abs_tol=1e-6):
        raise ValueError(f"'{name}' must be {count} probabilities that sum to 1: {[*values]}")


def require_lengths(name: str, values: Sequence[int]) -> None:
    """Raise ValueError unless all are 1 or more, and there is one."""
    if min(values, default=0) < 1:
        raise ValueError(f"'{name}' must be lengths of 1 or more: {[*values]}")


def require_length(name: str, value: float) -> None:
    """Raise ValueError unless it is a number of tokens or a share of them."""
    if not 0 < value < math.inf:
        raise ValueError(f"'{name}' must be > 0: {value}")


def chances(count: int | str) -> Callable[[Any, Any, Sequence[float]], None]:
    """A validator of attrs for probabilities: that many, or one for each value of another option."""

    def check(options: Any, attribute: Any, values: Sequence[float]) -> None:
        require_chances(attribute.name, values, count if isinstance(count, int) else len(getattr(options, count)))

    return check


def lengths(_: Any, attribute: Any, values: Sequence[int]) -> None:
    """A validator of attrs for lengths of 1 or more."""
    require_lengths(attribute.name, values)
