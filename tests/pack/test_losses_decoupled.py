"""dkd and nkd: what they decompose, labels that are not there, and probabilities that underflow."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbrew_plugins.losses import dkd, kl, nkd

BOTH = pytest.mark.parametrize("loss", [dkd, nkd])


def pair(seed, *shape):
    """Random logits, float64."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return student, teacher


@settings(deadline=None)
@given(seed=st.integers(0, 1000), label=st.integers(0, 4), temperature=st.floats(0.5, 10))
def test_dkd_with_the_weights_of_kl_is_kl(seed, label, temperature):
    """KL = TCKD + (1 - p_y) NCKD: Zhao et al. 2022, section 3.1, with a single row, which has one p_y."""
    student, teacher = pair(seed, 1, 5)
    rest = 1 - torch.softmax(teacher / temperature, dim=-1)[0, label].item()
    found = dkd(student, teacher, torch.tensor([label]), alpha=1.0, beta=rest, temperature=temperature)
    assert found.item() == pytest.approx(kl(student, teacher, temperature=temperature).item(), rel=1e-9, abs=1e-14)


def test_dkd_is_linear_in_its_weights():
    student, teacher = pair(0, 4, 5)
    labels = torch.tensor([0, 1, 2, 3])
    target, others = (dkd(student, teacher, labels, alpha=a, beta=b).item() for a, b in ((1.0, 0.0), (0.0, 1.0)))
    assert dkd(student, teacher, labels, alpha=2.0, beta=3.0).item() == pytest.approx(2 * target + 3 * others)


@BOTH
def test_rows_without_a_label_are_not_there(loss):
    student, teacher = pair(0, 4, 5)
    labels = torch.tensor([0, -100, 2, -100])
    expected = loss(student[::2], teacher[::2], labels[::2]).item()
    student.requires_grad_()
    found = loss(student, teacher, labels)
    found.backward()
    assert found.item() == pytest.approx(expected, rel=1e-12)
    assert student.grad[1::2].count_nonzero() == 0
    assert loss(student, teacher, torch.full((4,), -100)).item() == 0


@BOTH
def test_mask_and_labels_both_count(loss):
    student, teacher = pair(0, 2, 3, 5)
    labels = torch.tensor([[0, 1, -100], [3, 4, 0]])
    mask = torch.tensor([[True, False, True], [True, True, False]])
    there = mask & (labels != -100)
    expected = loss(student[there], teacher[there], labels[there]).item()
    assert loss(student, teacher, labels, mask).item() == pytest.approx(expected, rel=1e-12)


def test_t_squared_is_a_factor_of_dkd():
    student, teacher = pair(0, 4, 5)
    labels = torch.tensor([0, 1, 2, 3])
    plain = dkd(student, teacher, labels, t_squared=False).item()
    assert dkd(student, teacher, labels).item() == pytest.approx(16 * plain, rel=1e-12)


def test_t_squared_is_a_factor_of_the_second_part_of_nkd():
    student, teacher = pair(0, 4, 5)
    labels = torch.tensor([0, 1, 2, 3])
    first = nkd(student, teacher, labels, gamma=0.0, temperature=3.0).item()
    plain = nkd(student, teacher, labels, temperature=3.0, t_squared=False).item() - first
    assert nkd(student, teacher, labels, temperature=3.0).item() == pytest.approx(first + 9 * plain, rel=1e-12)


@BOTH
def test_a_label_that_is_all_but_certain_is_finite_and_right(loss):
    """The others' mass underflows in float32: its logarithm in the authors' code is -inf."""
    student = torch.tensor([[200.0, 1.0, 0.0]], requires_grad=True)
    teacher, labels = torch.tensor([[300.0, 0.0, 1.0]]), torch.tensor([0])
    found = loss(student, teacher, labels, temperature=1.0)
    found.backward()
    expected = loss(student.detach().double(), teacher.double(), labels, temperature=1.0).item()
    assert found.item() == pytest.approx(expected, rel=1e-6)
    assert expected > 0.4
    assert student.grad.isfinite().all()


@BOTH
def test_a_wrong_label_far_behind_is_not_among_the_others(loss):
    """The authors subtract 1,000 from the logit of the label, which logits of this size outweigh."""
    student, teacher = torch.tensor([[9e3, 1.0, 0.0]]), torch.tensor([[9e3, 1.0, 0.0]])
    labels = torch.tensor([0])
    others = torch.tensor([[1.0, 0.0]])
    entropy = -(torch.softmax(others, -1) * torch.log_softmax(others, -1)).sum().item()
    expected = {dkd: 0.0, nkd: 1.5 * entropy}[loss]
    assert loss(student, teacher, labels, temperature=1.0).item() == pytest.approx(expected, rel=1e-6)


@BOTH
def test_classes_of_which_only_the_label_is_possible(loss):
    logits = torch.tensor([[1.0, -math.inf, -math.inf]], requires_grad=True)
    found = loss(logits, logits.detach().clone(), torch.tensor([0]))
    found.backward()
    assert found.item() == 0
    assert logits.grad.count_nonzero() == 0
