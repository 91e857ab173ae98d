"""The one reduction: a mean over what is valid, whatever stands elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbrew.errors import ObjectiveError
from hookbrew.objective import valid_mean


@pytest.mark.parametrize("shape", [(5,), (2, 3)])
def test_without_a_mask_it_is_the_mean(shape):
    values = torch.randn(shape, dtype=torch.float64)
    assert valid_mean(values, None).item() == pytest.approx(np.mean(values.numpy()), rel=1e-12)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.booleans()), min_size=1, max_size=30))
def test_it_is_the_mean_of_the_chosen(pairs):
    values = torch.tensor([value for value, _ in pairs], dtype=torch.float64)
    mask = torch.tensor([valid for _, valid in pairs])
    chosen = [value for value, valid in pairs if valid]
    expected = math.fsum(chosen) / max(1, len(chosen))
    assert valid_mean(values, mask).item() == pytest.approx(expected, rel=1e-5, abs=1e-3)


@pytest.mark.parametrize("content", [math.nan, math.inf, -math.inf])
def test_what_is_masked_never_counts(content):
    values = torch.tensor([1.0, content, 3.0], requires_grad=True)
    mean = valid_mean(values, torch.tensor([True, False, True]))
    mean.backward()
    assert mean.item() == 2.0
    assert values.grad.tolist() == [0.5, 0.0, 0.5]


def test_nothing_valid_is_zero_with_a_gradient_of_zeros():
    values = torch.ones(2, 3, requires_grad=True)
    mean = valid_mean(values, torch.zeros(2, 3, dtype=torch.bool))
    mean.backward()
    assert mean.item() == 0.0
    assert values.grad.count_nonzero() == 0


def test_an_empty_batch_is_zero():
    assert valid_mean(torch.empty(0), None).item() == 0.0


def test_a_mask_that_is_not_bool_is_refused():
    with pytest.raises(ObjectiveError) as caught:
        valid_mean(torch.ones(2), torch.ones(2))
    assert str(caught.value) == "mask is torch.float32; expected torch.bool, as mask.bool() gives"


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ObjectiveError) as caught:
        valid_mean(torch.ones(2, 3), torch.ones(3, dtype=torch.bool))
    assert str(caught.value) == "mask is (3,); expected (2, 3), one entry for each position"
