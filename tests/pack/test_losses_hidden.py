"""hidden_mse and cos against float64 formulas in NumPy, the numbers of TextBrewer, and their laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbrew.errors import ObjectiveError
from hookbrew_plugins.losses import attention_mse, cos, hidden_mse
from tests.operations import Operations

MASK = [[True, True, True], [True, True, False]]


def wave(start, *shape):
    """The deterministic inputs of the TextBrewer oracle: 2 sin(start + 0.37 i^2), i the flat index."""
    index = np.arange(math.prod(shape))
    return torch.from_numpy(2 * np.sin(start + 0.37 * index**2)).reshape(shape)


def oracle_mse(student, teacher):
    """The mean squared difference of each vector, (..., D) to (...)."""
    return np.mean((student.numpy() - teacher.numpy()) ** 2, axis=-1)


def oracle_cos(student, teacher):
    """1 - cosine of each pair of vectors, (..., D) to (...)."""
    s, t = student.numpy(), teacher.numpy()
    return 1 - np.einsum("...d,...d->...", s, t) / np.sqrt((s**2).sum(-1) * (t**2).sum(-1))


BOTH = pytest.mark.parametrize(("loss", "oracle"), [(hidden_mse, oracle_mse), (cos, oracle_cos)])


@BOTH
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 4), (2, 2, 3, 4)])
def test_mean_over_all_positions(loss, oracle, shape):
    student, teacher = wave(1, *shape), wave(2, *shape)
    assert loss(student, teacher).item() == pytest.approx(oracle(student, teacher).mean(), rel=1e-12)


@BOTH
def test_mean_over_valid_positions(loss, oracle):
    student, teacher = wave(1, 2, 3, 4), wave(2, 2, 3, 4)
    expected = oracle(student, teacher)[np.array(MASK)].mean()
    assert loss(student, teacher, torch.tensor(MASK)).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "mask", "expected"),
    [
        (hidden_mse, None, 2.1157533932),
        (hidden_mse, MASK, 2.0807149337),
        (cos, None, 0.5708519558),
        (cos, MASK, 0.5700591869),
    ],
)
def test_textbrewer(loss, mask, expected):
    value = loss(wave(3, 2, 3, 4), wave(4, 2, 3, 4), None if mask is None else torch.tensor(mask))
    assert value.item() == pytest.approx(expected, abs=5e-11)


@BOTH
def test_gradcheck_with_a_mask(loss, oracle):
    del oracle
    teacher, student = wave(2, 2, 3, 4), wave(1, 2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, torch.tensor(MASK)), student)


@settings(deadline=None)
@given(student=st.floats(1e-3, 1e3), teacher=st.floats(1e-3, 1e3), seed=st.integers(0, 1000))
def test_lengths_do_not_change_cos(student, teacher, seed):
    generator = torch.Generator().manual_seed(seed)
    s, t = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    assert cos(s * student, t * teacher).item() == pytest.approx(cos(s, t).item(), rel=1e-9)


@settings(deadline=None)
@given(factor=st.floats(1e-3, 1e3), shift=st.floats(-10, 10), seed=st.integers(0, 1000))
def test_hidden_mse_is_quadratic_in_the_difference(factor, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    s, t = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    expected = factor**2 * hidden_mse(s, t).item()
    assert hidden_mse(s * factor + shift, t * factor + shift).item() == pytest.approx(expected, rel=1e-6)


def test_more_features_alike_do_not_change_hidden_mse():
    student, teacher = wave(1, 2, 3, 4), wave(2, 2, 3, 4)
    doubled = hidden_mse(torch.cat([student, student], -1), torch.cat([teacher, teacher], -1))
    assert doubled.item() == pytest.approx(hidden_mse(student, teacher).item(), rel=1e-12)


@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_a_zero_vector_has_no_direction_and_no_gradient(side):
    student = torch.ones(2, 3)
    teacher = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    for name, tensor in (("student", student), ("teacher", teacher)):
        if side in (name, "both"):
            tensor[0] = 0.0
    student.requires_grad_()
    value = cos(student, teacher)
    value.backward()
    assert value.item() == pytest.approx((1 + 1 - 1 / math.sqrt(3)) / 2)
    assert student.grad[0].tolist() == [0.0, 0.0, 0.0]
    assert student.grad[1].count_nonzero() == 3


def test_epsilon_is_the_length_below_which_nothing_points():
    student, teacher = torch.tensor([[0.1, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert cos(student, teacher, epsilon=0.09).item() == pytest.approx(0.0)
    assert cos(student, teacher, epsilon=0.11).item() == 1.0


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 0.0), (-2.0, 2.0)])
def test_cos_goes_from_zero_to_two(factor, expected):
    student = wave(1, 2, 3, 4)
    assert cos(student, factor * student).item() == pytest.approx(expected, abs=1e-12)


@BOTH
def test_masked_positions_may_hold_anything(loss, oracle):
    del oracle
    mask = torch.tensor(MASK)
    student, teacher = wave(1, 2, 3, 4), wave(2, 2, 3, 4)
    expected = loss(student, teacher, mask).item()
    holed = [x.masked_fill(~mask.unsqueeze(-1), math.inf).requires_grad_() for x in (student, teacher)]
    value = loss(*holed, mask)
    value.backward()
    assert value.item() == pytest.approx(expected, rel=1e-12)
    assert holed[0].grad[~mask].count_nonzero() == 0


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_are_computed_in_float32(loss, oracle, dtype):
    del oracle
    student, teacher = wave(1, 4, 5).to(dtype), wave(2, 4, 5).to(dtype)
    assert torch.equal(loss(student, teacher), loss(student.float(), teacher.float()))


@pytest.mark.parametrize(("loss", "shape"), [(hidden_mse, (2, 3, 4)), (attention_mse, (2, 4, 3, 3))])
def test_without_a_mask_memory_is_passed_once(loss, shape):
    """A difference, its square and its mean would each write as much as they read."""
    student, teacher = torch.rand(shape, requires_grad=True), torch.rand(shape)
    with Operations() as seen:
        value = loss(student, teacher)
    assert "mse_loss" in seen.names
    assert not {"sub", "pow", "mean", "masked_fill"} & set(seen.names)
    assert value.untyped_storage().nbytes() == value.element_size()
    assert value.item() == pytest.approx(((student - teacher) ** 2).mean().item())


@BOTH
def test_one_sample_of_one_feature(loss, oracle):
    student, teacher = wave(1, 1, 1), wave(2, 1, 1)
    assert loss(student, teacher).item() == pytest.approx(oracle(student, teacher).item(), abs=1e-12)


@BOTH
def test_widths_that_differ(loss, oracle):
    del oracle
    with pytest.raises(ObjectiveError) as caught:
        loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 8))
    assert str(caught.value) == "features differ: 4 and 8; student (2, 3, 4), teacher (2, 3, 8)"
