"""relation and value_relation against a formula that goes row by row, and their laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbrew.errors import ObjectiveError
from hookbrew_plugins.losses import relation, value_relation

MASK = torch.tensor([[True, True, True], [True, True, False]])


def wave(start, *shape):
    """Deterministic inputs: 2 sin(start + 0.37 i^2), i the flat index."""
    index = np.arange(math.prod(shape))
    return torch.from_numpy(2 * np.sin(start + 0.37 * index**2)).reshape(shape)


def split(vectors, heads):
    """The tokens of one sample, (H, L, D), as R lists of L vectors."""
    beside = np.concatenate(list(vectors), axis=-1)
    width = beside.shape[-1] // heads
    return [beside[:, r * width : (r + 1) * width] for r in range(heads)]


def oracle(student, teacher, mask, heads):
    """The mean KL divergence over relation heads and valid tokens."""
    found, tokens = 0.0, 0
    for s, t, m in zip(student.numpy(), teacher.numpy(), mask.numpy(), strict=True):
        tokens += m.sum()
        for ours, theirs in zip(split(s, heads), split(t, heads), strict=True):
            for i in np.flatnonzero(m):
                powers = [np.exp(a[m] @ a[i] / np.sqrt(a.shape[-1])) for a in (theirs, ours)]
                p, q = (power / power.sum() for power in powers)
                found += (p * np.log(p / q)).sum() / heads
    return found / tokens


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
@pytest.mark.parametrize("mask", [MASK, None])
def test_widths_and_heads_may_differ(heads, mask):
    student, teacher = wave(1, 2, 2, 3, 4), wave(2, 2, 4, 3, 6)
    expected = oracle(student, teacher, torch.ones_like(MASK) if mask is None else mask, heads)
    assert relation(student, teacher, mask, heads=heads).item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("mask", [MASK, None])
def test_values_head_by_head(mask):
    student, teacher = wave(1, 2, 2, 3, 4), wave(2, 2, 2, 3, 6)
    expected = oracle(student, teacher, torch.ones_like(MASK) if mask is None else mask, 2)
    assert value_relation(student, teacher, mask).item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("loss", [lambda *a: relation(*a, heads=4), value_relation])
def test_gradcheck_with_a_mask(loss):
    teacher, student = wave(2, 2, 2, 3, 6), wave(1, 2, 2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, MASK), student)


@settings(deadline=None)
@given(seed=st.integers(0, 1000))
def test_a_rotation_of_each_relation_head_changes_nothing(seed):
    generator = torch.Generator().manual_seed(seed)
    s, t = torch.randn(2, 2, 3, 4, 6, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(3, 6, 6, generator=generator, dtype=torch.float64))[0]
    value = value_relation(s, t).item()
    assert value >= 0
    assert value_relation(s @ turn, t).item() == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert relation(s @ turn, t, heads=3).item() == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert value_relation(s @ turn, s).item() == pytest.approx(0, abs=1e-12)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), order=st.permutations(range(4)))
def test_tokens_have_no_order(seed, order):
    generator = torch.Generator().manual_seed(seed)
    s, t = torch.randn(2, 2, 2, 4, 6, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 4, generator=generator) < 0.7
    expected = relation(s, t, mask, heads=4).item()
    found = relation(s[:, :, order], t[:, :, order], mask[:, order], heads=4).item()
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_more_padding_changes_nothing():
    student, teacher = wave(1, 2, 2, 3, 4), wave(2, 2, 2, 3, 4)
    expected = relation(student, teacher, MASK, heads=4).item()
    wider = [torch.nn.functional.pad(side, (0, 0, 0, 2), value=7.0) for side in (student, teacher)]
    assert relation(*wider, torch.nn.functional.pad(MASK, (0, 2)), heads=4).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("content", [math.inf, math.nan])
def test_padding_may_hold_anything(content):
    student, teacher = wave(1, 2, 2, 3, 4), wave(2, 2, 2, 3, 4)
    expected = relation(student, teacher, MASK, heads=4).item()
    hole = ~MASK[:, None, :, None]
    student, teacher = (side.masked_fill(hole, content).requires_grad_() for side in (student, teacher))
    value = relation(student, teacher, MASK, heads=4)
    value.backward()
    assert value.item() == pytest.approx(expected, rel=1e-12)
    assert student.grad.masked_select(hole).count_nonzero() == 0
    assert student.grad.isfinite().all()
    assert teacher.grad is None


def test_nothing_valid_one_token_and_huge_values():
    student, teacher = wave(1, 2, 2, 3, 4).float().requires_grad_(), wave(2, 2, 2, 3, 4).float()
    empty = relation(student, teacher, torch.zeros_like(MASK), heads=4)
    huge = relation(student * 1e4, teacher * 1e4, MASK, heads=4)
    assert empty.item() == 0
    assert relation(student[:, :, :1], teacher[:, :, :1], heads=4).item() == 0
    assert huge.isfinite()
    for value in (empty, huge):
        assert torch.autograd.grad(value, student)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_are_computed_in_float32(dtype):
    student, teacher = wave(1, 2, 2, 3, 4).to(dtype), wave(2, 2, 2, 3, 4).to(dtype)
    long = relation(student.float(), teacher.float(), heads=4)
    assert torch.equal(relation(student, teacher, heads=4), long)


REFUSED = [
    (relation, (2, 2, 3, 12), None, "heads = 48 does not divide the 8 features of the student's tokens and the 24 of "
     "the teacher's; what divides both: 1, 2, 4, 8"),
    (relation, (2, 2, 5, 4), None, "numbers of tokens differ: 3 and 5; student (2, 2, 3, 4), teacher (2, 2, 5, 4)"),
    (relation, (2, 3, 8), None, "expected (batch, heads, tokens, features); student (2, 2, 3, 4), teacher (2, 3, 8)"),
    (relation, (2, 2, 3, 4), torch.ones(2, 4) > 0, "mask is (2, 4); expected (2, 3), one entry for each token"),
    (value_relation, (2, 4, 3, 4), None, "numbers of heads differ: 2 and 4; student (2, 2, 3, 4), teacher "
     "(2, 4, 3, 4); attention_mse_sum and attention_ce_mean merge the heads, relation cuts them anew"),
]  # fmt: skip


@pytest.mark.parametrize(("loss", "shape", "mask", "said"), REFUSED)
def test_shapes_that_do_not_fit(loss, shape, mask, said):
    with pytest.raises(ObjectiveError) as caught:
        loss(torch.zeros(2, 2, 3, 4), torch.zeros(shape), mask)
    assert str(caught.value) == said
