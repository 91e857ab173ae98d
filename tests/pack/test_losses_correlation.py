"""dist: what it ignores, how masks enter the columns, and distributions that have nothing to correlate."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbrew_plugins.losses import dist


def pair(seed, *shape):
    """Random logits, float64."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return student, teacher


@settings(deadline=None)
@given(seed=st.integers(0, 1000), share=st.floats(0.1, 1.0))
def test_rows_know_no_scale_and_no_offset(seed, share):
    """A teacher mixed with the uniform distribution is as good as the teacher: r is the same."""
    student, teacher = pair(seed, 4, 5)
    blurred = (share * torch.softmax(teacher, dim=-1) + (1 - share) / 5).log()
    expected = dist(student, teacher, gamma=0.0).item()
    assert dist(student, blurred, gamma=0.0).item() == pytest.approx(expected, rel=1e-9)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), order=st.permutations(range(6)))
def test_the_order_of_the_samples_is_irrelevant(seed, order):
    student, teacher = pair(seed, 6, 5)
    expected = dist(student, teacher).item()
    assert dist(student[order], teacher[order]).item() == pytest.approx(expected, rel=1e-9)


def test_both_relations_lie_between_0_and_2():
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert dist(student, student).item() == pytest.approx(0, abs=1e-12)
    assert dist(student, -student).item() == pytest.approx(4)
    assert dist(student, -student, beta=0.0).item() == pytest.approx(2)


def test_tokens_of_all_samples_make_one_column():
    student, teacher = pair(0, 2, 3, 5)
    expected = dist(student.flatten(0, 1), teacher.flatten(0, 1), beta=0.0).item()
    assert dist(student, teacher, beta=0.0).item() == pytest.approx(expected, rel=1e-12)


def test_masked_rows_leave_the_columns_before_they_are_centred():
    student, teacher = pair(0, 6, 5)
    mask = torch.tensor([True, True, False, True, False, True])
    expected = dist(student[mask], teacher[mask], beta=0.0).item()
    assert dist(student, teacher, mask, beta=0.0).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("t_squared", [True, False])
def test_t_squared(t_squared):
    student, teacher = pair(0, 6, 5)
    flat = dist(student / 3, teacher / 3).item()
    found = dist(student, teacher, temperature=3.0, t_squared=t_squared).item()
    assert found == pytest.approx(flat * (9 if t_squared else 1), rel=1e-12)


def test_without_t_squared_its_gradient_keeps_its_size():
    student, teacher = pair(0, 6, 5)
    cool, hot = (
        torch.func.grad(lambda x, t=t: dist(x, teacher, temperature=t, t_squared=False))(student).norm().item()
        for t in (20.0, 80.0)
    )
    assert cool == pytest.approx(hot, rel=0.1)


def test_a_uniform_teacher_is_unrelated_and_sends_no_gradient():
    student = pair(0, 6, 5)[0].requires_grad_()
    found = dist(student, torch.zeros(6, 5, dtype=torch.float64))
    found.backward()
    assert found.item() == 2
    assert student.grad.count_nonzero() == 0


def test_uniform_on_both_sides_agrees():
    student = torch.zeros(6, 5, requires_grad=True)
    found = dist(student, torch.zeros(6, 5))
    found.backward()
    assert found.item() == 0
    assert student.grad.count_nonzero() == 0


def test_one_sample_has_rows_alone():
    student, teacher = pair(0, 1, 5)
    assert dist(student, teacher, beta=0.0).item() == 0
    assert dist(student, teacher).item() == dist(student, teacher, gamma=0.0).item() > 0


def test_classes_of_tiny_probability_agree_with_themselves():
    """The authors' epsilon makes them unrelated: half of the columns here, at agreement."""
    logits = pair(0, 6, 4)[0].float()
    logits[:, 2:] -= 12
    assert dist(logits, logits.clone()).item() == pytest.approx(0, abs=1e-5)


def test_a_class_ruled_out_on_both_sides_is_no_part_of_a_row():
    student, teacher = pair(0, 6, 4)
    expected = dist(student[:, :3], teacher[:, :3]).item()
    student[:, 3] = teacher[:, 3] = -math.inf
    assert dist(student, teacher).item() == pytest.approx(expected, rel=1e-12)
