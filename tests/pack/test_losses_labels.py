"""ce against a float64 formula in NumPy, and its laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbrew.errors import ObjectiveError
from hookbrew_plugins.losses import ce


def drawn(*shape, seed=0):
    """Random logits (..., C) in float64 and labels (...)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    return logits, torch.randint(shape[-1], shape[:-1], generator=generator)


def oracle(student, labels, smoothing=0.0):
    """The losses of the labelled positions, one after the other."""
    found = []
    rows = zip(student.reshape(-1, student.shape[-1]).numpy(), labels.reshape(-1).tolist(), strict=True)
    for row, label in rows:
        if label != -100:
            logs = row - np.log(np.sum(np.exp(row)))
            found.append(-(1 - smoothing) * logs[label] - smoothing * logs.mean())
    return np.array(found)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 7)])
def test_mean_over_all_positions(smoothing, shape):
    student, labels = drawn(*shape)
    expected = oracle(student, labels, smoothing).mean()
    assert ce(student, labels, label_smoothing=smoothing).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_positions_without_a_label_are_left_out(smoothing):
    student, labels = drawn(2, 3, 5)
    labels[0, 1] = labels[1, 2] = -100
    expected = oracle(student, labels, smoothing)
    assert len(expected) == 4
    assert ce(student, labels, label_smoothing=smoothing).item() == pytest.approx(expected.mean(), rel=1e-12)


def test_a_mask_and_missing_labels_leave_out_both():
    student, labels = drawn(2, 3, 5)
    labels[0, 0] = -100
    mask = torch.tensor([[True, False, True], [True, True, False]])
    expected = oracle(student, labels.masked_fill(~mask, -100)).mean()
    assert ce(student, labels, mask).item() == pytest.approx(expected, rel=1e-12)


def test_labels_under_the_mask_may_be_anything():
    student, labels = drawn(4, 5)
    mask = torch.tensor([True, True, False, True])
    expected = ce(student, labels, mask)
    assert torch.equal(ce(student, labels.masked_fill(~mask, 999), mask), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_may_be_any_integers(dtype):
    student, labels = drawn(4, 5)
    mask = torch.tensor([True, True, False, True])
    for there in (None, mask):
        assert torch.equal(ce(student, labels.to(dtype), there), ce(student, labels, there))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_no_label_at_all_is_zero_with_a_gradient_of_zeros(smoothing):
    student = torch.full((2, 5), math.nan, requires_grad=True)
    value = ce(student, torch.tensor([-100, -100]), label_smoothing=smoothing)
    value.backward()
    assert value.item() == 0.0
    assert student.grad.count_nonzero() == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_padding_of_the_vocabulary_changes_nothing(smoothing):
    student, labels = drawn(4, 5)
    wide = torch.nn.functional.pad(student, (0, 2), value=-math.inf).requires_grad_()
    value = ce(wide, labels, label_smoothing=smoothing)
    value.backward()
    assert value.item() == pytest.approx(ce(student, labels, label_smoothing=smoothing).item(), rel=1e-12)
    assert wide.grad[:, -2:].count_nonzero() == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_label_that_the_student_rules_out_is_infinite(smoothing):
    assert ce(torch.tensor([[0.0, -math.inf]]), torch.tensor([1]), label_smoothing=smoothing).item() == math.inf


def test_gradcheck_with_smoothing_and_a_mask():
    student, labels = drawn(3, 2, 4)
    mask = torch.tensor([[True, True], [False, True], [True, False]])
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ce(x, labels, mask, label_smoothing=0.1), student)


@settings(deadline=None)
@given(order=st.permutations(range(6)), shift=st.floats(-50, 50), seed=st.integers(0, 1000))
def test_order_of_samples_and_a_constant_on_all_classes_change_nothing(order, shift, seed):
    student, labels = drawn(6, 5, seed=seed)
    expected = ce(student, labels, label_smoothing=0.1).item()
    assert ce(student[order] + shift, labels[order], label_smoothing=0.1).item() == pytest.approx(expected, rel=1e-9)


def test_one_class_is_certain():
    assert ce(torch.randn(2, 1), torch.tensor([0, 0])).item() == 0.0


def test_short_floats_are_computed_in_float32():
    student, labels = drawn(4, 5)
    assert torch.equal(ce(student.bfloat16(), labels), ce(student.bfloat16().float(), labels))


def softly(*shape, seed=0):
    """Random logits and probabilities (..., C)."""
    student, _ = drawn(*shape, seed=seed)
    return student, drawn(*shape, seed=seed + 1)[0].softmax(dim=-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 7)])
def test_soft_labels_are_weighed_hard_ones(smoothing, shape):
    student, soft = softly(*shape)
    expected = 0.0
    for label in range(shape[-1]):
        losses = oracle(student, torch.full(shape[:-1], label), smoothing)
        expected += (losses * soft[..., label].flatten().numpy()).mean()
    assert ce(student, soft, label_smoothing=smoothing).item() == pytest.approx(expected, rel=1e-12)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), smoothing=st.sampled_from([0.0, 0.1]))
def test_soft_labels_that_are_sure_are_hard_ones(seed, smoothing):
    student, labels = drawn(2, 3, 5, seed=seed)
    labels[0, 1] = -100
    mask = torch.tensor([[True, True, True], [True, False, True]])
    soft = torch.nn.functional.one_hot(labels.clamp(min=0), 5) * (labels >= 0).unsqueeze(-1)
    expected = ce(student, labels, mask, label_smoothing=smoothing).item()
    assert ce(student, soft.float(), mask, label_smoothing=smoothing).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("empty", [0.0, -100.0])
def test_rows_without_a_soft_label_do_not_count_and_hide_anything(empty):
    student, soft = softly(4, 5)
    student[1], soft[1] = math.nan, empty
    student.requires_grad_()
    value = ce(student, soft)
    value.backward()
    rest = torch.tensor([True, False, True, True])
    assert value.item() == pytest.approx(ce(student[rest], soft[rest]).item(), rel=1e-12)
    assert student.grad[1].count_nonzero() == 0
    alone = ce(student, torch.full_like(soft, empty))
    assert alone.item() == 0.0
    assert alone.requires_grad


def test_a_soft_label_that_sums_to_less_counts_less():
    student, soft = softly(1, 5)
    assert ce(student, soft / 4, label_smoothing=0.1).item() == pytest.approx(
        ce(student, soft, label_smoothing=0.1).item() / 4, rel=1e-12
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_labels_and_a_padded_vocabulary(smoothing):
    student, soft = softly(4, 5)
    wide = torch.nn.functional.pad(student, (0, 2), value=-math.inf).requires_grad_()
    value = ce(wide, torch.nn.functional.pad(soft, (0, 2)), label_smoothing=smoothing)
    value.backward()
    assert value.item() == pytest.approx(ce(student, soft, label_smoothing=smoothing).item(), rel=1e-12)
    assert wide.grad.isfinite().all()
    ruled_out = torch.nn.functional.pad(soft, (0, 2), value=0.1)
    assert ce(wide.detach(), ruled_out, label_smoothing=smoothing).item() == math.inf


def test_soft_labels_gradcheck_and_get_no_gradient():
    student, soft = softly(3, 2, 4)
    mask = torch.tensor([[True, True], [False, True], [True, False]])
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ce(x, soft, mask, label_smoothing=0.1), student)
    soft.requires_grad_()
    ce(student, soft).backward()
    assert soft.grad is None


def test_short_soft_labels_are_computed_in_float32():
    student, soft = softly(4, 5)
    found = ce(student.bfloat16(), soft.bfloat16())
    assert torch.equal(found, ce(student.bfloat16().float(), soft.bfloat16().float()))


REFUSED = [
    ((4, 5), torch.zeros(3, dtype=torch.long), "labels are (3,); expected (4,), the student's shape (4, 5) without its "
     "classes"),
    ((4, 5), torch.zeros(4).bool(), "labels are torch.bool; expected torch.long, the number of each class"),
    ((4, 5), torch.zeros(4), "soft labels, torch.float32, are (4,); expected (4, 5), as the student, or torch.long, "
     "the number of each class"),
    ((5,), torch.tensor(1), "student is (5,); expected (batch, ..., classes)"),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "labels", "message"), REFUSED)
def test_labels_that_do_not_fit(shape, labels, message):
    with pytest.raises(ObjectiveError) as caught:
        ce(torch.zeros(shape), labels)
    assert str(caught.value) == message
