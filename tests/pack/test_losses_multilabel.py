"""bce and kd_bce: their labels, their precision, and the step of a run with several labels a sample."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

import hookbrew as hb
from hookbrew.errors import ObjectiveError
from hookbrew_plugins.losses import bce, kd_bce


def random(seed, *shape):
    """Random logits, float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def several(seed, *shape):
    """A 0 or a 1 for each class, float64."""
    return (random(seed, *shape) > 0).double()


def oracle(logits, labels):
    """The mean of -y log s - (1 - y) log(1 - s)."""
    s = 1 / (1 + np.exp(-logits.numpy()))
    return np.mean(-labels.numpy() * np.log(s) - (1 - labels.numpy()) * np.log(1 - s))


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5), (2, 2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.long, torch.bool])
def test_a_label_for_each_class(shape, dtype):
    student, labels = random(0, *shape), several(1, *shape)
    mask = torch.from_numpy(np.arange(math.prod(shape[:-1])) % 3 != 1).reshape(shape[:-1])
    assert bce(student, labels.to(dtype)).item() == pytest.approx(oracle(student, labels), rel=1e-12)
    found = bce(student, labels.to(dtype), mask).item()
    assert found == pytest.approx(oracle(student[mask], labels[mask]), rel=1e-12)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 100))
def test_it_is_the_one_of_torch(seed, scale):
    student, labels = random(seed, 4, 5) * scale, torch.sigmoid(random(seed + 1, 4, 5))
    expected = functional.binary_cross_entropy_with_logits(student, labels).item()
    assert bce(student, labels).item() == pytest.approx(expected, rel=1e-9)


def test_a_class_number_is_one_label():
    student, numbers = random(0, 2, 3, 5), torch.tensor([[0, 4, 2], [1, 1, 3]])
    expected = bce(student, functional.one_hot(numbers, 5)).item()
    assert bce(student, numbers).item() == pytest.approx(expected, rel=1e-12)


def test_a_class_number_of_minus_100_is_no_label():
    student, numbers = random(0, 4, 5), torch.tensor([0, -100, 2, -100])
    expected = bce(student[::2], numbers[::2]).item()
    assert bce(student, numbers).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("unknown", [-1, -100])
def test_a_class_without_a_label_is_left_out(unknown):
    student, labels = random(0, 3, 5).requires_grad_(), several(1, 3, 5)
    labels[0, 1:] = labels[2] = unknown
    found = bce(student, labels)
    found.backward()
    rows = [oracle(student.detach()[0, :1], labels[0, :1]), oracle(student.detach()[1], labels[1]), 0]
    assert found.item() == pytest.approx(sum(rows) / 3, rel=1e-12)
    assert student.grad[labels < 0].count_nonzero() == 0
    assert student.grad[labels >= 0].count_nonzero() == 6


def test_a_class_ruled_out_is_not_counted_unless_it_is_a_label():
    student, labels = random(0, 3, 5), several(1, 3, 5)
    labels[:, 4] = 0
    expected = bce(student[:, :4], labels[:, :4]).item()
    student[:, 4] = -math.inf
    assert bce(student, labels).item() == pytest.approx(expected, rel=1e-12)
    labels[0, 4] = 1
    assert bce(student, labels).item() == math.inf


def test_gradcheck_of_several_labels():
    student, labels = random(0, 2, 3, 4).requires_grad_(), several(1, 2, 3, 4)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    assert torch.autograd.gradcheck(lambda x: bce(x, labels, mask), student)


@pytest.mark.parametrize("content", [math.nan, math.inf, -100.0])
def test_masked_labels_may_hold_anything(content):
    student, labels, mask = random(0, 4, 5), several(1, 4, 5), torch.tensor([True, False, True, False])
    expected = bce(student, labels, mask).item()
    found = bce(student.requires_grad_(), labels.masked_fill(~mask[:, None], content), mask)
    found.backward()
    assert found.item() == expected
    assert student.grad[~mask].count_nonzero() == 0
    assert student.grad.isfinite().all()


def test_kd_bce_is_bce_with_the_sigmoids_of_the_teacher():
    student, teacher = random(0, 4, 5), random(1, 4, 5)
    expected = 9 * bce(student / 3, torch.sigmoid(teacher / 3)).item()
    assert kd_bce(student, teacher, temperature=3.0).item() == pytest.approx(expected, rel=1e-12)
    plain = kd_bce(student, teacher, temperature=3.0, t_squared=False).item()
    assert plain == pytest.approx(expected / 9, rel=1e-12)


@settings(deadline=None)
@given(seed=st.integers(0, 1000))
def test_kd_bce_is_least_at_agreement(seed):
    teacher = random(seed, 4, 5)
    assert kd_bce(random(seed + 1, 4, 5), teacher).item() >= kd_bce(teacher, teacher).item()


def test_right_and_sure_keeps_its_digits():
    """softplus(z) - y z would lose them in float32: it is a difference of two numbers of the size of z."""
    assert bce(torch.tensor([[12.0]]), torch.ones(1, 1)).item() == pytest.approx(math.log1p(math.exp(-12)), rel=1e-6)


@pytest.mark.parametrize(
    ("labels", "given_as"),
    [(torch.zeros(2), "torch.float32 (2,)"), (torch.zeros(2, 4), "torch.float32 (2, 4)")],
)
def test_labels_that_do_not_fit(labels, given_as):
    with pytest.raises(ObjectiveError) as caught:
        bce(torch.zeros(2, 5), labels)
    assert str(caught.value) == (
        f"labels are {given_as}; expected (2, 5), from 0 to 1 for each class, or torch.long (2,), the number of the "
        "one class"
    )


class Tagger(torch.nn.Module):
    """Three tags of four numbers."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, inputs):
        return self.linear(inputs)


def test_a_run_with_several_labels_a_sample(pack):
    """Labels of floats, (B, C), go through the objective as they are; every sample counts."""
    torch.manual_seed(0)
    teacher, student = Tagger(), Tagger()
    batch = {"inputs": torch.randn(6, 4), "labels": (torch.randn(6, 3) > 0).float()}
    run = hb.Distillation(teacher, student, [hb.loss("bce"), hb.loss("kd_bce", temperature=2.0)], catalogue=pack)
    with run.objective.attached():
        run.objective.measure(batch)
        assert run.objective.counts(batch, 6, torch.device("cpu")).tolist() == [6, 6]
        run.objective.forward(batch)
        means = run.objective.means(batch)
    logits = student(batch["inputs"])
    assert means["bce"].item() == pytest.approx(
        functional.binary_cross_entropy_with_logits(logits, batch["labels"]).item(), rel=1e-6
    )
