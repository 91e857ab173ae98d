"""topk_tail: a coarser view of kl, never below 0, never above it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbrew_plugins.losses import kl, topk_tail


def pair(seed, *shape, scale=1.0):
    """Random logits, float64."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, generator=generator, dtype=torch.float64) * scale
    return student, teacher


@pytest.mark.parametrize("k", [5, 6, 64])
def test_all_classes_are_kl(k):
    student, teacher = pair(0, 4, 5)
    expected = kl(student, teacher, temperature=2.0).item()
    assert topk_tail(student, teacher, k=k, temperature=2.0).item() == pytest.approx(expected, rel=1e-12)


def test_a_tail_of_one_class_is_kl():
    student, teacher = pair(0, 4, 5)
    expected = kl(student, teacher, temperature=1.0).item()
    assert topk_tail(student, teacher, k=4).item() == pytest.approx(expected, rel=1e-12)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 20))
def test_it_grows_with_k_from_0_to_kl(seed, scale):
    student, teacher = pair(seed, 3, 8, scale=scale)
    values = [topk_tail(student, teacher, k=k).item() for k in range(1, 9)]
    assert values[0] >= -1e-12
    assert all(low <= high + 1e-9 for low, high in pairwise(values))


def test_every_class_has_a_gradient():
    """A student that is told nothing of the tail could put any mass there."""
    student, teacher = pair(0, 4, 8)
    student.requires_grad_()
    topk_tail(student, teacher, k=2).backward()
    assert student.grad.count_nonzero() == student.numel()


def test_a_tail_too_small_for_1_less_the_rest():
    """1 - p is 0 in float32 where the tail has 1e-9: its logarithm would be -inf, and its gradient nan."""
    teacher = torch.tensor([[20.0, 0.0, -1.0, -2.0]])
    student = torch.tensor([[20.0, 2.0, 1.0, -2.0]])
    single, double = (
        torch.func.grad(lambda x, y=y: topk_tail(x, y, k=1))(x)
        for x, y in ((student, teacher), (student.double(), teacher.double()))
    )
    torch.testing.assert_close(single[:, 1:].double(), double[:, 1:], rtol=1e-4, atol=0)


def test_teachers_with_ties_and_t_squared():
    student, teacher = pair(0, 4, 5)[0], torch.zeros(4, 5, dtype=torch.float64)
    plain = topk_tail(student, teacher, k=2, temperature=3.0, t_squared=False).item()
    assert plain > 0
    assert topk_tail(student, teacher, k=2, temperature=3.0).item() == pytest.approx(9 * plain, rel=1e-12)
