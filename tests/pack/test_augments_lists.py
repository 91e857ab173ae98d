"""Augmentation of lists: TextBrewer's loops, written down again in NumPy and given the same draws, and laws."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbrew_plugins.augments import deleting, long_disorder, masking, n_gram_sampling, short_disorder

SEEDS = st.integers(0, 2**32)
TEXTS = st.lists(st.integers(), max_size=30)
FIVE = st.lists(st.integers(0, 9), min_size=5, max_size=5).filter(any).map(lambda xs: [x / sum(xs) for x in xs])
ALL = [
    masking,
    deleting,
    n_gram_sampling,
    short_disorder,
    long_disorder,
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draws(count, seed):
    """The numbers from [0, 1) that a function sees, one for each token."""
    return torch.rand(count, generator=generator(seed), dtype=torch.float64).numpy()


def their_short_disorder(tokens, p, draw):
    """data_utils.short_disorder; numpy.random.choice is a searchsorted in the cumulated probabilities."""
    i, outputs, count = 0, tokens[:], len(tokens)
    while i < count - 1:
        permutation = np.searchsorted(np.cumsum(p) / np.sum(p), draw[i], side="right")
        if (permutation != 0 and i == count - 2) or permutation == 1:
            outputs[i], outputs[i + 1] = outputs[i + 1], outputs[i]
            i += 2
        elif permutation == 2:
            outputs[i], outputs[i + 2] = outputs[i + 2], outputs[i]
            i += 3
        elif permutation == 3:
            outputs[i], outputs[i + 1], outputs[i + 2] = outputs[i + 2], outputs[i], outputs[i + 1]
            i += 3
        elif permutation == 4:
            outputs[i], outputs[i + 1], outputs[i + 2] = outputs[i + 1], outputs[i + 2], outputs[i]
            i += 3
        else:
            i += 1
    return outputs


def their_long_disorder(tokens, p, length, draw):
    """data_utils.long_disorder, where it returns."""
    outputs = tokens[:]
    if int(length) <= 1:
        length = len(tokens) * length
    length = (int(length) + 1) // 2 * 2
    assert length > 0
    i = 0
    while i <= len(outputs) - length:
        if draw[i] < p:
            half = length // 2
            outputs[i : i + half], outputs[i + half : i + length] = (
                outputs[i + half : i + length],
                outputs[i : i + half],
            )
            i += length
        else:
            i += 1
    return outputs


@settings(deadline=None)
@given(tokens=TEXTS, p=st.floats(0, 1), seed=SEEDS)
def test_masking_and_deleting_decide_for_each_token(tokens, p, seed):
    hit = draws(len(tokens), seed) < p
    assert masking(tokens, p, "M", generator=generator(seed)) == [
        "M" if x else token for token, x in zip(tokens, hit, strict=True)
    ]
    expected = [token for token, x in zip(tokens, hit, strict=True) if not x]
    found = deleting(tokens, p, generator=generator(seed))
    assert found == expected or (not expected and len(found) == min(1, len(tokens)) and set(found) <= set(tokens))


@settings(deadline=None)
@given(tokens=TEXTS, p=FIVE, seed=SEEDS)
def test_short_disorder_is_theirs(tokens, p, seed):
    found = short_disorder(tokens, p, generator=generator(seed))
    assert found == their_short_disorder(tokens, p, draws(len(tokens), seed))


@settings(deadline=None)
@given(
    tokens=TEXTS,
    p=st.floats(0, 1),
    length=st.one_of(st.integers(2, 12), st.just(1), st.floats(0.05, 1), st.floats(2, 12)),
    seed=SEEDS,
)
def test_long_disorder_is_theirs(tokens, p, length, seed):
    found = long_disorder(tokens, p, length, generator=generator(seed))
    if length > 1 or int(len(tokens) * length):
        assert found == their_long_disorder(tokens, p, length, draws(len(tokens), seed))
    else:
        assert found == tokens


@pytest.mark.parametrize(("case", "expected"), [*enumerate(["abcdefg", "badcfeg", "cbafedg", "cabfdeg", "bcaefdg"])])
def test_the_five_disorders(case, expected):
    assert "".join(short_disorder("abcdefg", [float(i == case) for i in range(5)])) == expected


@pytest.mark.parametrize("case", [1, 2, 3, 4])
def test_of_two_tokens_every_disorder_is_a_swap(case):
    assert short_disorder("ab", [float(i == case) for i in range(5)]) == ["b", "a"]


@pytest.mark.parametrize(
    ("count", "length", "expected"),
    [
        (11, 0.4, [2, 3, 0, 1, 6, 7, 4, 5, 8, 9, 10]),  # TextBrewer's docstring loses the 10
        (6, 3, [2, 3, 0, 1, 4, 5]),
        (6, 1, [3, 4, 5, 0, 1, 2]),
        (5, 1.0, [0, 1, 2, 3, 4]),  # rounded up to 6, which it is shorter than
        (4, 1.5, [1, 0, 3, 2]),  # no share: above 1 it counts tokens, as their documentation says
        (2, 0.4, [0, 1]),  # less than a token; theirs never returns
        (2, 20, [0, 1]),
        (0, 0.5, []),
    ],
)
def test_lengths_of_long_disorder(count, length, expected):
    assert long_disorder(range(count), 1.0, length) == expected


@settings(deadline=None)
@given(tokens=TEXTS, seed=SEEDS)
def test_disorder_keeps_every_token(tokens, seed):
    for found in (
        short_disorder(tokens, [0.1, 0.3, 0.2, 0.2, 0.2], generator=generator(seed)),
        long_disorder(tokens, 0.5, 4, generator=generator(seed)),
    ):
        assert Counter(found) == Counter(tokens)


@settings(deadline=None)
@given(count=st.integers(0, 30), p=st.floats(0, 1), seed=SEEDS)
def test_deleting_keeps_the_order_and_never_all_is_lost(count, p, seed):
    found = deleting(range(count), p, generator=generator(seed))
    assert all(x < y for x, y in pairwise(found))
    assert bool(found) == bool(count)


def test_the_one_that_is_left_may_be_any():
    assert {deleting("abc", 1.0, generator=generator(seed))[0] for seed in range(30)} == {*"abc"}


@settings(deadline=None)
@given(count=st.integers(0, 9), lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4), seed=SEEDS)
def test_n_gram_sampling_is_a_run_of_a_length_that_was_asked_for(count, lengths, seed):
    found = n_gram_sampling(range(count), [1 / len(lengths)] * len(lengths), lengths, generator=generator(seed))
    assert len(found) in {min(length, count) for length in lengths}
    assert all(y - x == 1 for x, y in pairwise(found))
    assert set(found) <= set(range(count))


def test_how_often_n_gram_sampling_takes_what():
    given_by, counted = generator(1), Counter()
    for _ in range(6000):
        counted[tuple(n_gram_sampling("abcd", [0.25, 0.0, 0.75], [1, 2, 3], generator=given_by))] += 1
    expected = {("a",): 0.0625, ("b",): 0.0625, ("c",): 0.0625, ("d",): 0.0625}
    expected |= {("a", "b", "c"): 0.375, ("b", "c", "d"): 0.375}
    assert counted.keys() == expected.keys()
    assert all(counted[run] / 6000 == pytest.approx(share, abs=0.02) for run, share in expected.items())


@pytest.mark.parametrize("function", ALL)
def test_random_numbers_are_the_generators_or_those_of_torch(function):
    text, state = [*range(60)], torch.get_rng_state()
    assert function(text, generator=generator(5)) == function(text, generator=generator(5))
    assert len({tuple(function(text, generator=generator(seed))) for seed in range(8)}) > 4
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert function(text) == function(text, generator=generator(5))
    assert not torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_inputs_are_left_alone_and_a_list_comes_back(function, kind):
    text = kind([1, 2, 3, 4, 5, 6])
    found = function(text, generator=generator())
    assert type(found) is list
    assert [*map(int, text)] == [1, 2, 3, 4, 5, 6]
    found.append(7)
    assert len(text) == 6


@pytest.mark.parametrize("function", ALL)
def test_a_text_of_one_token_or_none(function):
    assert function([]) == []
    assert len(function(["a"])) == 1


def test_tokens_may_be_anything():
    first, second = object(), object()
    assert short_disorder([first, second], [0, 1, 0, 0, 0]) == [second, first]
    assert masking([first], 1.0) == ["[MASK]"]


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (masking, {"p": 1.1}, "'p' must be from 0 to 1: 1.1"),
        (deleting, {"p": -0.1}, "'p' must be from 0 to 1: -0.1"),
        (long_disorder, {"p": 2}, "'p' must be from 0 to 1: 2"),
        (long_disorder, {"length": 0}, "'length' must be > 0: 0"),
        (long_disorder, {"length": float("inf")}, "'length' must be > 0: inf"),
        (short_disorder, {"p": [0.5, 0.5]}, "'p' must be 5 probabilities that sum to 1: [0.5, 0.5]"),
        (short_disorder, {"p": [1, 1, -1, 0, 0]}, "'p' must be 5 probabilities that sum to 1: [1, 1, -1, 0, 0]"),
        (n_gram_sampling, {"p_ng": [0.5], "l_ng": [1]}, "'p_ng' must be 1 probabilities that sum to 1: [0.5]"),
        (n_gram_sampling, {"l_ng": [1, 2]}, "'p_ng' must be 2 probabilities that sum to 1: [0.2, 0.2, 0.2, 0.2, 0.2]"),
        (n_gram_sampling, {"l_ng": [1, 0]}, "'l_ng' must be lengths of 1 or more: [1, 0]"),
        (n_gram_sampling, {"l_ng": []}, "'l_ng' must be lengths of 1 or more: []"),
    ],
)
def test_options_that_make_no_sense(function, options, message):
    with pytest.raises(ValueError, match="must be") as caught:
        function("abc", **options)
    assert str(caught.value) == message
