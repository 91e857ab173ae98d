"""Projections: the initial weights of TextBrewer, and the activation after the affine map."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hookbrew_plugins.projections import Linear, Relu, Tanh

ALL = [(Linear, nn.Identity()), (Relu, nn.ReLU()), (Tanh, nn.Tanh())]


def affine(module):
    """The one nn.Linear of a projection."""
    (found,) = (part for part in module.modules() if isinstance(part, nn.Linear))
    return found


@pytest.mark.parametrize(("options", "activation"), ALL)
def test_an_affine_map_then_the_activation(options, activation):
    module, features = options().build(3, 4), torch.randn(2, 5, 3)
    layer = affine(module)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    expected = activation(features @ layer.weight.T + layer.bias)
    torch.testing.assert_close(module(features), expected)


@pytest.mark.parametrize(("options", "activation"), ALL)
def test_initial_weights(options, activation):
    del activation
    torch.manual_seed(0)
    layer = affine(options().build(400, 500))
    assert layer.weight.shape == (500, 400)
    assert layer.bias.shape == (500,)
    assert layer.bias.count_nonzero() == 0
    assert layer.weight.mean().item() == pytest.approx(0.0, abs=2e-4)
    assert layer.weight.std().item() == pytest.approx(0.02, rel=0.01)


@given(student=st.integers(1, 9), teacher=st.integers(1, 9), leading=st.lists(st.integers(1, 3), max_size=3))
@settings(deadline=None, max_examples=30)
def test_only_the_last_dimension_changes(student, teacher, leading):
    for options, _ in ALL:
        assert options().build(student, teacher)(torch.zeros(*leading, student)).shape == (*leading, teacher)
