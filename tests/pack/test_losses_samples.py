"""sp, rkd, pkt and cka: what they say of a batch as a whole, against float64 formulas in NumPy, and their laws."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbrew.errors import ObjectiveError
from hookbrew_plugins.losses import cka, pkt, rkd, sp

MASK = torch.tensor([[True, True, True], [True, True, False], [False, False, False], [True, False, False]])


def wave(start, *shape):
    """Deterministic inputs: 2 sin(start + 0.37 i^2), i the flat index."""
    index = np.arange(math.prod(shape))
    return torch.from_numpy(2 * np.sin(start + 0.37 * index**2)).reshape(shape)


def vectors(tensor, mask):
    """The samples that have something valid, in NumPy, one vector each; zeros where the mask is False."""
    if mask is None:
        return tensor.flatten(1).numpy()
    there = mask.flatten(1).any(1) if mask.dim() > 1 else mask
    return tensor.where(mask[..., None], torch.tensor(0.0)).flatten(1)[there].numpy()


def unit(rows):
    """Rows of length 1."""
    return rows / np.sqrt((rows**2).sum(-1, keepdims=True))


def oracle_sp(student, teacher, mask):
    s, t = (vectors(side, mask) for side in (student, teacher))
    return ((unit(s @ s.T) - unit(t @ t.T)) ** 2).sum() / len(s) ** 2


def huber(difference):
    size = abs(difference)
    return size**2 / 2 if size < 1 else size - 0.5


def oracle_rkd(student, teacher, mask):
    sides = [vectors(side, mask) for side in (student, teacher)]
    number = len(sides[0])
    total = 0.0
    far = [[[np.linalg.norm(a - b) for b in side] for a in side] for side in sides]
    mean = [np.mean([d for row in table for d in row if d > 0]) for table in far]
    for i, j in product(range(number), repeat=2):
        total += 25 * huber(far[0][i][j] / mean[0] - far[1][i][j] / mean[1]) / number**2
    for i, j, k in product(range(number), repeat=3):
        angles = []
        for side in sides:
            one, other = side[j] - side[i], side[k] - side[i]
            size = np.linalg.norm(one) * np.linalg.norm(other)
            angles.append(one @ other / size if size else 0.0)
        total += 50 * huber(angles[0] - angles[1]) / number**3
    return total


def oracle_pkt(student, teacher, mask):
    kernels = [(1 + unit(x) @ unit(x).T) / 2 for x in (vectors(student, mask), vectors(teacher, mask))]
    q, p = (kernel / kernel.sum(1, keepdims=True) for kernel in kernels)
    return (p * np.log(np.maximum(p, 1e-7) / np.maximum(q, 1e-7))).mean()


def oracle_cka(student, teacher, mask):
    """By kernels of positions (Kornblith et al. 2019, section 3), where the loss multiplies features."""
    sides = [x.flatten(0, -2) if mask is None else x[mask] for x in (student, teacher)]
    number = len(sides[0])
    centre = np.eye(number) - 1 / number
    one, other = (centre @ x.numpy() @ x.numpy().T @ centre for x in sides)
    return 1 - np.trace(one @ other) / np.sqrt(np.trace(one @ one) * np.trace(other @ other))


EACH = pytest.mark.parametrize(
    ("loss", "oracle"), [(sp, oracle_sp), (rkd, oracle_rkd), (pkt, oracle_pkt), (cka, oracle_cka)]
)


@EACH
@pytest.mark.parametrize("shape", [(5, 4), (4, 3, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_against_the_formula(loss, oracle, shape, masked):
    student, teacher = wave(1, *shape[:-1], 6), wave(2, *shape)
    mask = (MASK if len(shape) == 3 else torch.arange(5) != 1) if masked else None
    assert loss(student, teacher, mask).item() == pytest.approx(oracle(student, teacher, mask), rel=1e-9)


@pytest.mark.parametrize("loss", [sp, rkd, pkt])
def test_maps_of_channels_are_flattened(loss):
    student, teacher = wave(1, 3, 2, 4, 4), wave(2, 3, 5, 2, 2)
    assert loss(student, teacher).item() == loss(student.flatten(1), teacher.flatten(1)).item()


def test_the_weights_of_rkd():
    sides = wave(1, 4, 3), wave(2, 4, 5)
    parts = rkd(*sides, distance=1, angle=0).item(), rkd(*sides, distance=0, angle=1).item()
    assert rkd(*sides, distance=2, angle=3).item() == pytest.approx(2 * parts[0] + 3 * parts[1], rel=1e-12)


@EACH
def test_gradcheck_with_a_mask(loss, oracle):
    del oracle
    teacher, student = wave(2, 4, 3, 5), wave(1, 4, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, MASK), student)


@settings(deadline=None, max_examples=25)
@given(factor=st.floats(1e-2, 1e2), seed=st.integers(0, 1000))
def test_scale_and_rotation_of_the_features_change_nothing(factor, seed):
    generator = torch.Generator().manual_seed(seed)
    s, t = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))[0]
    for loss in (sp, rkd, pkt, cka):
        expected = loss(s, t).item()
        assert loss(factor * s @ turn, t).item() == pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert loss(s, s @ turn).item() == pytest.approx(0, abs=1e-7)


@settings(deadline=None, max_examples=25)
@given(order=st.permutations(range(4)), seed=st.integers(0, 1000))
def test_samples_have_no_order(order, seed):
    generator = torch.Generator().manual_seed(seed)
    s, t = torch.randn(2, 4, 3, 2, generator=generator, dtype=torch.float64)
    for loss in (sp, rkd, pkt, cka):
        assert loss(s[order], t[order], MASK[order]).item() == pytest.approx(loss(s, t, MASK).item(), rel=1e-9)


@EACH
def test_more_padding_changes_nothing(loss, oracle):
    del oracle
    student, teacher = wave(1, 4, 3, 2), wave(2, 4, 3, 5)
    wider = [torch.nn.functional.pad(side, (0, 0, 0, 2), value=math.nan) for side in (student, teacher)]
    found = loss(*wider, torch.nn.functional.pad(MASK, (0, 2))).item()
    assert found == pytest.approx(loss(student, teacher, MASK).item(), rel=1e-12)


CONSTANT = torch.ones(4, 3, 2)


@EACH
@pytest.mark.parametrize(
    ("student", "mask"),
    [
        (wave(1, 4, 3, 2), torch.zeros(4, 3, dtype=torch.bool)),
        (wave(1, 1, 3, 2), None),
        (wave(1, 1, 1, 2), None),
        (CONSTANT, None),
        (CONSTANT * 0, None),
        (CONSTANT.clone().index_fill_(0, torch.tensor([1]), 0), None),
        (wave(1, 4, 3, 2).float() * 1e4, None),
    ],
)
def test_extremes_have_finite_gradients(loss, oracle, student, mask):
    del oracle
    teacher = wave(2, *student.shape).to(student.dtype)
    student = student.clone().requires_grad_()
    with torch.autograd.set_detect_anomaly(True):  # not even on the way
        value = loss(student, teacher, mask)
        value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
    if mask is not None:
        assert value.item() == 0
        assert student.grad.count_nonzero() == 0


def test_what_does_not_vary_is_like_nothing():
    student = (0.1 * CONSTANT).requires_grad_()
    value = cka(student, wave(2, 4, 3, 2).float())
    value.backward()
    assert value.item() == 1
    assert student.grad.count_nonzero() == 0


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_are_computed_in_float32(loss, oracle, dtype):
    del oracle
    student, teacher = wave(1, 4, 3).to(dtype), wave(2, 4, 5).to(dtype)
    assert torch.equal(loss(student, teacher), loss(student.float(), teacher.float()))


@pytest.mark.parametrize("loss", [sp, rkd, pkt])
def test_samples_that_differ(loss):
    with pytest.raises(ObjectiveError) as caught:
        loss(torch.zeros(2, 3), torch.zeros(4, 3))
    assert str(caught.value) == "samples differ: student (2, 3), teacher (4, 3)"


def test_positions_that_differ():
    with pytest.raises(ObjectiveError) as caught:
        cka(torch.zeros(2, 3, 4), torch.zeros(2, 5, 4))
    assert str(caught.value) == "positions differ: student (2, 3, 4), teacher (2, 5, 4)"


@pytest.mark.parametrize("loss", [sp, rkd, pkt])
def test_one_mask_for_texts_of_two_lengths(loss):
    student, teacher = torch.zeros(2, 3, 4), torch.zeros(2, 5, 4)
    assert loss(student, teacher).item() == 0  # in each model by itself
    with pytest.raises(ObjectiveError) as caught:
        loss(student, teacher, torch.ones(2, 3, dtype=torch.bool))
    assert str(caught.value) == (
        "numbers of tokens differ, and one mask cannot be of both: student (2, 3, 4), teacher (2, 5, 4); "
        "compare pooled tensors, one row for each sample"
    )
