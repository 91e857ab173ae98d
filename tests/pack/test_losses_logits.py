"""kd_ce and kd_mse against float64 formulas in NumPy, the numbers of TextBrewer, and their laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbrew.errors import ObjectiveError
from hookbrew_plugins.losses import kd_ce, kd_mse

MASK = [[True, True, False], [True, False, False]]


def wave(start, *shape):
    """The deterministic inputs of the TextBrewer oracle: 2 sin(start + 0.37 i^2), i the flat index."""
    index = np.arange(math.prod(shape))
    return torch.from_numpy(2 * np.sin(start + 0.37 * index**2)).reshape(shape)


def soft_rows(logits, temperature):
    """Softmax of each row, written out."""
    powers = np.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)
    return powers / powers.sum(axis=-1, keepdims=True)


def oracle_ce(student, teacher, temperature):
    """-T^2 sum_c p log q, (..., C) to (...)."""
    p, q = soft_rows(teacher.numpy(), temperature), soft_rows(student.numpy(), temperature)
    return -(temperature**2) * np.sum(p * np.log(q), axis=-1)


def oracle_mse(student, teacher, temperature):
    """T^2 mean_c of the squared difference at temperature T, (..., C) to (...)."""
    difference = student.numpy() / temperature - teacher.numpy() / temperature
    return temperature**2 * np.mean(difference**2, axis=-1)


BOTH = pytest.mark.parametrize(("loss", "oracle"), [(kd_ce, oracle_ce), (kd_mse, oracle_mse)])


@BOTH
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 7)])
def test_mean_over_all_positions(loss, oracle, temperature, shape):
    student, teacher = wave(1, *shape), wave(2, *shape)
    expected = oracle(student, teacher, temperature).mean()
    assert loss(student, teacher, temperature=temperature).item() == pytest.approx(expected, rel=1e-12)


@BOTH
def test_mean_over_valid_positions(loss, oracle):
    student, teacher = wave(1, 2, 3, 5), wave(2, 2, 3, 5)
    expected = oracle(student, teacher, 3.0)[np.array(MASK)].mean()
    assert loss(student, teacher, torch.tensor(MASK), temperature=3.0).item() == pytest.approx(expected, rel=1e-12)


@BOTH
def test_mean_over_valid_samples(loss, oracle):
    student, teacher, mask = wave(1, 4, 5), wave(2, 4, 5), torch.tensor([True, False, True, True])
    expected = oracle(student, teacher, 2.0)[mask.numpy()].mean()
    assert loss(student, teacher, mask, temperature=2.0).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "temperature", "expected"),
    [(kd_ce, 1.0, 1.8219439849), (kd_ce, 4.0, 1.6022761188), (kd_mse, 1.0, 1.6426104618), (kd_mse, 4.0, 0.1026631539)],
)
def test_textbrewer_without_t_squared(loss, temperature, expected):
    value = loss(wave(7, 2, 5), wave(8, 2, 5), temperature=temperature, t_squared=False)
    assert value.item() == pytest.approx(expected, abs=5e-11)


@BOTH
def test_t_squared_is_a_factor(loss, oracle):
    del oracle
    student, teacher = wave(7, 2, 5), wave(8, 2, 5)
    plain = loss(student, teacher, temperature=4.0, t_squared=False)
    assert loss(student, teacher, temperature=4.0).item() == pytest.approx(16 * plain.item(), rel=1e-12)


def test_kd_ce_at_agreement_is_the_entropy_of_the_teacher():
    logits = wave(7, 2, 5)
    p = soft_rows(logits.numpy(), 8.0)
    expected = -64 * np.sum(p * np.log(p), axis=-1).mean()
    assert kd_ce(logits, logits, temperature=8.0).item() == pytest.approx(expected, rel=1e-12)


def test_kd_mse_does_not_depend_on_the_temperature():
    student, teacher = wave(7, 2, 5), wave(8, 2, 5)
    assert kd_mse(student, teacher, temperature=9.0).item() == pytest.approx(kd_mse(student, teacher).item(), rel=1e-12)


@BOTH
def test_gradcheck_with_a_mask(loss, oracle):
    del oracle
    teacher = wave(2, 2, 3, 4)
    student = wave(1, 2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, torch.tensor(MASK), temperature=3.0), student)


@settings(deadline=None)
@given(shifts=st.lists(st.floats(-50, 50), min_size=4, max_size=4), seed=st.integers(0, 1000))
def test_a_constant_added_to_a_row_changes_no_kd_ce(shifts, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    moved = student + torch.tensor(shifts, dtype=torch.float64).unsqueeze(-1)
    assert kd_ce(moved, teacher).item() == pytest.approx(kd_ce(student, teacher).item(), rel=1e-9)


@settings(deadline=None)
@given(shift=st.floats(-50, 50), seed=st.integers(0, 1000))
def test_kd_mse_sees_the_difference_alone(shift, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    expected = kd_mse(student, teacher).item()
    assert kd_mse(student + shift, teacher + shift).item() == pytest.approx(expected, rel=1e-9)


@BOTH
def test_padding_of_the_vocabulary_changes_nothing(loss, oracle):
    del oracle
    student, teacher = wave(1, 2, 3, 5), wave(2, 2, 3, 5)
    wide = [torch.nn.functional.pad(x, (0, 2), value=-math.inf).requires_grad_() for x in (student, teacher)]
    value = loss(*wide)
    value.backward()
    assert value.item() == pytest.approx(loss(student, teacher).item(), rel=1e-12)
    assert wide[0].grad.isfinite().all()
    assert wide[0].grad[..., -2:].count_nonzero() == 0


def test_kd_ce_ignores_a_class_that_the_teacher_rules_out():
    student, teacher = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, -math.inf]])
    assert kd_ce(student, teacher, temperature=1.0).item() == pytest.approx(math.log(3))


def test_kd_ce_is_infinite_where_the_student_rules_out_what_the_teacher_wants():
    assert kd_ce(torch.tensor([[0.0, -math.inf]]), torch.zeros(1, 2)).item() == math.inf


@BOTH
@pytest.mark.parametrize("content", [-math.inf, math.inf, math.nan])
def test_masked_positions_may_hold_anything(loss, oracle, content):
    del oracle
    student, teacher = wave(1, 2, 3, 5), wave(2, 2, 3, 5)
    mask = torch.tensor(MASK)
    expected = loss(student, teacher, mask).item()
    student, teacher = (x.masked_fill(~mask.unsqueeze(-1), content).requires_grad_() for x in (student, teacher))
    value = loss(student, teacher, mask)
    value.backward()
    assert value.item() == pytest.approx(expected, rel=1e-12)
    assert student.grad[~mask].count_nonzero() == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 1), (1, 4)])
def test_one_class_one_token_one_sample(shape):
    student = torch.zeros(shape, requires_grad=True)
    value = kd_ce(student, torch.zeros(shape), temperature=1.0)
    value.backward()
    assert value.item() == pytest.approx(math.log(shape[-1]))
    assert student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@BOTH
def test_short_floats_are_computed_in_float32(loss, oracle, dtype):
    del oracle
    student, teacher = wave(1, 4, 5).to(dtype), wave(2, 4, 5).to(dtype)
    value = loss(student, teacher)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(student.float(), teacher.float()))


REFUSED = [
    (((2, 5), (2, 6), None), "classes differ: 5 and 6; student (2, 5), teacher (2, 6)"),
    (((2, 5), (3, 5), None), "batch sizes differ: 2 and 3; student (2, 5), teacher (3, 5)"),
    (((2, 3, 5), (2, 4, 5), None), "numbers of tokens differ: 3 and 4; student (2, 3, 5), teacher (2, 4, 5)"),
    (((2, 5), (2, 1, 5), None), "number of dimensions differs: student (2, 5), teacher (2, 1, 5)"),
    (((5,), (5,), None), "student is (5,); expected (batch, ..., classes)"),
    (((2, 3, 5), (2, 3, 5), torch.ones(2, 4) > 0), "mask is (2, 4); expected (2, 3), the student's shape (2, 3, 5) "
     "without its last dimension"),
    (((2, 5), (2, 5), torch.ones(2)), "mask is torch.float32; expected torch.bool, as mask.bool() gives"),
]  # fmt: skip


@BOTH
@pytest.mark.parametrize(("case", "message"), REFUSED)
def test_shapes_that_do_not_fit(loss, oracle, case, message):
    del oracle
    student, teacher, mask = case
    with pytest.raises(ObjectiveError) as caught:
        loss(torch.zeros(student), torch.zeros(teacher), mask)
    assert str(caught.value) == message
