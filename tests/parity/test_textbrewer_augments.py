"""The text augmentations of TextBrewer: the same results where nothing is left to chance, and what differs on purpose.

Random numbers differ, NumPy's global ones there and a generator of torch here, and so do texts that are drawn.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from textbrewer import data_utils

from hookbrew_plugins.augments.lists import deleting, long_disorder, masking, n_gram_sampling, short_disorder

FIXED = settings(derandomize=True, deadline=None, max_examples=60)
TEXTS = st.integers(0, 12).map(lambda size: list(range(size)))


@given(tokens=TEXTS, certain=st.sampled_from([0.0, 1.0]))
@FIXED
def test_masking(tokens, certain):
    assert masking(tokens, certain) == data_utils.masking(tokens, certain)


@given(tokens=TEXTS)
@FIXED
def test_deleting_nothing(tokens):
    assert deleting(tokens, 0.0) == data_utils.deleting(tokens, 0.0) == tokens


@given(tokens=TEXTS, case=st.integers(0, 4))
@FIXED
def test_short_disorder(tokens, case):
    chances = [float(number == case) for number in range(5)]
    assert short_disorder(tokens, chances) == data_utils.short_disorder(tokens, chances)


@given(
    tokens=st.integers(4, 12).map(lambda size: list(range(size))), length=st.sampled_from([2, 3, 4, 7, 20, 0.5, 1.0])
)
@FIXED
def test_long_disorder(tokens, length):
    assert long_disorder(tokens, 1.0, length) == data_utils.long_disorder(tokens, 1.0, length)


@given(tokens=st.integers(1, 12).map(lambda size: list(range(size))))
@FIXED
def test_n_gram_sampling_of_the_whole_text(tokens):
    whole = {"p_ng": [1.0], "l_ng": [len(tokens)]}
    assert n_gram_sampling(tokens, **whole) == data_utils.n_gram_sampling(tokens, **whole) == tokens


def test_how_often_does_not_differ():
    """Each of the five lengths is drawn as often: within 5 deviations of 20,000 draws."""
    np.random.seed(0)
    generator, tokens = torch.Generator().manual_seed(0), list(range(9))
    chances = [0.1, 0.2, 0.3, 0.25, 0.15]
    for name, draw in {
        "theirs": lambda: data_utils.n_gram_sampling(tokens, chances),
        "ours": lambda: n_gram_sampling(tokens, chances, generator=generator),
    }.items():
        found = np.bincount([len(draw()) for _ in range(20_000)], minlength=6)[1:] / 20_000
        assert np.abs(found - chances).max() < 5 * 0.5 / 20_000**0.5, name


def test_a_text_that_is_shorter_than_the_sample_stays_whole():
    with pytest.raises(ValueError, match="high <= 0"):
        data_utils.n_gram_sampling([7, 8], [1.0], [5])
    assert n_gram_sampling([7, 8], [1.0], [5]) == [7, 8]


def test_a_text_is_never_deleted_whole():
    assert data_utils.deleting([7, 8], 1.0) == []
    assert len(deleting([7, 8], 1.0)) == 1


def test_inputs_are_left_alone():
    """TextBrewer's copy of a tensor is a view."""
    tokens = torch.tensor([7, 8])
    data_utils.masking(tokens, 1.0, mask=0)
    assert tokens.tolist() == [0, 0]
    tokens = torch.tensor([7, 8])
    assert masking(tokens, 1.0, mask=0) == [0, 0]
    assert tokens.tolist() == [7, 8]


def test_a_share_of_more_than_the_text_is_a_number_of_tokens():
    """1.5 is 150 % there, which is longer than any text, and 1 token, rounded up to 2, here."""
    assert data_utils.long_disorder([0, 1, 2, 3], 1.0, 1.5) == [0, 1, 2, 3]
    assert long_disorder([0, 1, 2, 3], 1.0, 1.5) == [1, 0, 3, 2]


def test_a_share_of_less_than_a_token_ends():
    """`long_disorder([0, 1], 1, 0.4)` of TextBrewer never returns: it goes on by a length of 0."""
    assert long_disorder([0, 1], 1.0, 0.4) == [0, 1]
