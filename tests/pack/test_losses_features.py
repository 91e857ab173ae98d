"""pkd, at and vid against float64 formulas in NumPy, the number of TextBrewer, and their laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbrew.errors import ObjectiveError
from hookbrew_plugins.losses import at, pkd
from hookbrew_plugins.losses.variational import VID

MASK = torch.tensor([[True, True, True], [False, True, True], [False, False, False]])


def wave(start, *shape):
    """The deterministic inputs of the TextBrewer oracle: 2 sin(start + 0.37 i^2), i the flat index."""
    index = np.arange(math.prod(shape))
    return torch.from_numpy(2 * np.sin(start + 0.37 * index**2)).reshape(shape)


def unit(vector):
    """Of length 1."""
    return vector / np.sqrt((vector**2).sum())


def oracle_pkd(student, teacher, mask):
    found = []
    for s, t, m in zip(student.numpy(), teacher.numpy(), mask.numpy(), strict=True):
        if m.any():
            first = np.flatnonzero(m)[0]
            found.append(((unit(s[first]) - unit(t[first])) ** 2).sum())
    return np.mean(found)


def oracle_at(student, teacher, mask, power):
    found = []
    for s, t, m in zip(student.numpy(), teacher.numpy(), mask.numpy(), strict=True):
        ours, theirs = (unit((abs(x[m]) ** power).mean(-1)) for x in (s, t))
        found += list((ours - theirs) ** 2)
    return np.mean(found)


@pytest.mark.parametrize("mask", [None, torch.tensor([[True, True, True], [True, True, False]])])
def test_pkd_is_that_of_textbrewer(mask):
    student, teacher = wave(3, 2, 3, 4), wave(4, 2, 3, 4)
    assert pkd(student, teacher, mask).item() == pytest.approx(1.2661820532, abs=5e-11)
    assert pkd(student[:, 0], teacher[:, 0]).item() == pytest.approx(1.2661820532, abs=5e-11)


def test_pkd_of_first_tokens_behind_padding():
    student, teacher = wave(1, 3, 3, 4), wave(2, 3, 3, 4)
    assert pkd(student, teacher, MASK).item() == pytest.approx(oracle_pkd(student, teacher, MASK), rel=1e-12)
    pooled = pkd(student[:, 0], teacher[:, 0], torch.tensor([True, False, False])).item()
    assert pooled == pytest.approx(pkd(student[:1], teacher[:1]).item(), rel=1e-12)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_at_of_tokens(power):
    student, teacher = wave(1, 3, 3, 4), wave(2, 3, 3, 6)
    expected = oracle_at(student, teacher, MASK, power)
    assert at(student, teacher, MASK, power=power).item() == pytest.approx(expected, rel=1e-12)
    whole = oracle_at(student, teacher, torch.ones_like(MASK), power)
    assert at(student, teacher, power=power).item() == pytest.approx(whole, rel=1e-12)


def test_at_of_images_has_their_pixels_for_tokens():
    student, teacher = wave(1, 2, 3, 2, 5), wave(2, 2, 4, 2, 5)
    tokens = [side.permute(0, 2, 3, 1).flatten(1, 2) for side in (student, teacher)]
    assert at(student, teacher).item() == pytest.approx(at(*tokens).item(), rel=1e-12)


def likelihood(student, teacher, variance):
    """The mean of the negative log of the normal density, without its constant."""
    error = (teacher.numpy() - student.numpy()) ** 2
    return np.mean(np.log(variance) / 2 + error / (2 * np.asarray(variance)))


def test_vid_starts_with_the_given_variance():
    student, teacher = wave(1, 2, 3, 4), wave(2, 2, 3, 4)
    for variance in (0.1, 5.0, 40.0):
        found = VID(variance=variance).build().double()(student, teacher).item()
        assert found == pytest.approx(likelihood(student, teacher, variance), rel=1e-5)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    masked = VID().build().double()(student, teacher, mask).item()
    assert masked == pytest.approx(likelihood(student[mask], teacher[mask], 5.0), rel=1e-6)


def test_vid_has_a_variance_for_each_feature():
    student, teacher = wave(1, 2, 3, 4), wave(2, 2, 3, 4)
    loss = VID(features=4).build().double()
    with torch.no_grad():
        loss.raw += torch.arange(4)
    variance = (torch.nn.functional.softplus(loss.raw) + 1e-5).detach().numpy()
    assert len(set(variance)) == 4
    assert loss(student, teacher).item() == pytest.approx(likelihood(student, teacher, variance), rel=1e-12)


def test_vid_learns_how_far_the_student_is():
    student, teacher = wave(1, 2, 3, 4), wave(2, 2, 3, 4)
    loss = VID().build().double()
    optimizer = torch.optim.LBFGS(loss.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(student, teacher)
        value.backward()
        return value

    optimizer.step(closure)
    variance = torch.nn.functional.softplus(loss.raw).item() + 1e-5
    assert variance == pytest.approx((student - teacher).square().mean().item(), rel=1e-4)


LOSSES = pytest.mark.parametrize("loss", [pkd, at, VID().build().double()], ids=["pkd", "at", "vid"])


@LOSSES
def test_gradcheck_with_a_mask(loss):
    teacher, student = wave(2, 3, 3, 4), wave(1, 3, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, MASK), student)


@settings(deadline=None)
@given(factor=st.floats(1e-2, 1e2), seed=st.integers(0, 1000))
def test_lengths_change_neither_pkd_nor_at(factor, seed):
    generator = torch.Generator().manual_seed(seed)
    s, t = torch.randn(2, 3, 3, 4, generator=generator, dtype=torch.float64)
    for loss in (pkd, at):
        expected = loss(s, t, MASK).item()
        assert loss(factor * s, t, MASK).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert loss(s, factor * s, MASK).item() == pytest.approx(0, abs=1e-12)


@LOSSES
def test_more_padding_changes_nothing(loss):
    student, teacher = wave(1, 3, 3, 4), wave(2, 3, 3, 4)
    wider = [torch.nn.functional.pad(side, (0, 0, 1, 2), value=math.nan) for side in (student, teacher)]
    found = loss(*wider, torch.nn.functional.pad(MASK, (1, 2))).item()
    assert found == pytest.approx(loss(student, teacher, MASK).item(), rel=1e-12)


@LOSSES
@pytest.mark.parametrize(
    ("student", "mask"),
    [
        (wave(1, 3, 3, 4), torch.zeros(3, 3, dtype=torch.bool)),
        (torch.zeros(3, 3, 4), None),
        (wave(1, 1, 1, 1), None),
        (wave(1, 3, 3, 4).float() * 1e4, None),
    ],
)
def test_extremes_have_finite_gradients(loss, student, mask):
    student = student.clone().requires_grad_()
    value = loss(student, wave(2, *student.shape).to(student.dtype), mask)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
    if mask is not None:
        assert value.item() == 0
        assert student.grad.count_nonzero() == 0


def test_a_vector_without_direction_counts_as_zero():
    student = torch.zeros(1, 3).requires_grad_()
    value = pkd(student, torch.tensor([[0.0, 3.0, 4.0]]))
    value.backward()
    assert value.item() == pytest.approx(1)
    assert student.grad.count_nonzero() == 0


REFUSED = [
    (at, (2, 3), (2, 3), "expected (batch, tokens, features) or (batch, channels, height, width); student (2, 3), "
     "teacher (2, 3)"),
    (at, (2, 3, 4), (2, 5, 4), "places differ, only features may; student (2, 3, 4), teacher (2, 5, 4)"),
    (at, (2, 3, 4, 4), (2, 3, 2, 2), "places differ, only channels may; student (2, 3, 4, 4), teacher (2, 3, 2, 2)"),
    (pkd, (2, 3, 4), (2, 3, 8), "features differ: 4 and 8; student (2, 3, 4), teacher (2, 3, 8)"),
    (VID(features=3).build(), (2, 4), (2, 4), "features = 3, and the tensors have 4; write 1 or that number"),
]  # fmt: skip


@pytest.mark.parametrize(("loss", "ours", "theirs", "said"), REFUSED)
def test_shapes_that_do_not_fit(loss, ours, theirs, said):
    with pytest.raises(ObjectiveError) as caught:
        loss(torch.zeros(ours), torch.zeros(theirs))
    assert str(caught.value) == said


def test_a_variance_below_the_smallest():
    with pytest.raises(ObjectiveError) as caught:
        VID(variance=1e-6).build()
    assert str(caught.value) == "variance = 1e-06 is not above epsilon = 1e-05"
