"""Every loss on logits against a float64 formula in NumPy, and what all of them have in common."""

from __future__ import annotations

import inspect
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbrew.errors import ObjectiveError
from hookbrew_plugins.losses import bce, dist, dkd, jsd, kd_bce, kd_ce, kd_mse, kl, nkd, rkl, skl, srkl, topk_tail, tvd

SHAPES = [(6, 5), (2, 3, 7), (2, 2, 3, 4)]


def wave(start, *shape):
    """The deterministic inputs of the TextBrewer oracle: 2 sin(start + 0.37 i^2), i the flat index."""
    index = np.arange(math.prod(shape))
    return torch.from_numpy(2 * np.sin(start + 0.37 * index**2)).reshape(shape)


def soft(logits, temperature=1.0):
    """Softmax of each row, written out."""
    powers = np.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)
    return powers / powers.sum(axis=-1, keepdims=True)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def standard(logits):
    return (logits - logits.mean(axis=-1, keepdims=True)) / logits.std(axis=-1, ddof=1, keepdims=True)


def relative(p, q):
    """KL(p || q) of each row."""
    return np.sum(p * np.log(p / q), axis=-1)


# Each oracle: student and teacher (N, C), labels (N), to the mean.


def oracle_kd_ce(s, t, _):
    return np.mean(-9 * np.sum(soft(t, 3) * np.log(soft(s, 3)), axis=-1))


def oracle_kd_mse(s, t, _):
    return np.mean((standard(s) - standard(t)) ** 2)


def oracle_kl(s, t, _):
    return np.mean(9 * relative(soft(t, 3), soft(s, 3)))


def oracle_standardized(s, t, _):
    return np.mean(4 * relative(soft(standard(t), 2), soft(standard(s), 2)))


def oracle_rkl(s, t, _):
    return np.mean(4 * relative(soft(s, 2), soft(t, 2)))


def oracle_jsd(s, t, _):
    p, q = soft(t, 2), soft(s, 2)
    m = 0.3 * p + 0.7 * q
    return np.mean(4 * (0.3 * relative(p, m) + 0.7 * relative(q, m)))


def oracle_skl(s, t, _):
    p, q = soft(t, 2), soft(s, 2)
    return np.mean(4 * relative(p, 0.2 * p + 0.8 * q))


def oracle_srkl(s, t, _):
    p, q = soft(t, 2), soft(s, 2)
    return np.mean(4 * relative(q, 0.2 * q + 0.8 * p))


def oracle_tvd(s, t, _):
    return np.mean(2 * 0.5 * np.abs(soft(t, 2) - soft(s, 2)).sum(axis=-1))


def oracle_dkd(s, t, y):
    rows = []
    for ours, theirs, gold in zip(soft(s, 2), soft(t, 2), y, strict=True):
        b_s, b_t = (np.array([x[gold], 1 - x[gold]]) for x in (ours, theirs))
        r_s, r_t = (np.delete(x, gold) / (1 - x[gold]) for x in (ours, theirs))
        rows.append(4 * (0.7 * relative(b_t, b_s) + 3.0 * relative(r_t, r_s)))
    return np.mean(rows)


def oracle_nkd(s, t, y):
    rows = []
    for ours, theirs, gold in zip(s, t, y, strict=True):
        rest = -np.sum(soft(np.delete(theirs, gold), 2) * np.log(soft(np.delete(ours, gold), 2)))
        rows.append(-soft(theirs)[gold] * np.log(soft(ours)[gold]) + 1.5 * 4 * rest)
    return np.mean(rows)


def oracle_topk(s, t, _):
    rows = []
    for ours, theirs in zip(soft(s, 2), soft(t, 2), strict=True):
        kept = np.argsort(-theirs)[:2]
        q, p = (np.append(x[kept], 1 - x[kept].sum()) for x in (ours, theirs))
        rows.append(4 * relative(p, q))
    return np.mean(rows)


def oracle_dist(s, t, _):
    q, p = soft(s, 2), soft(t, 2)
    rows = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)]
    columns = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)]
    return 4 * (0.5 * np.mean(rows) + 2.0 * np.mean(columns))


def oracle_bce(s, _, y):
    hot = np.eye(s.shape[-1])[y]
    return np.mean(-hot * np.log(sigmoid(s)) - (1 - hot) * np.log(sigmoid(-s)))


def oracle_kd_bce(s, t, _):
    p, q = sigmoid(t / 2), sigmoid(s / 2)
    return np.mean(4 * (-p * np.log(q) - (1 - p) * np.log(1 - q)))


CASES = {
    "kd_ce": (partial(kd_ce, temperature=3.0), oracle_kd_ce),
    "kd_mse": (partial(kd_mse, temperature=2.0, standardize=True), oracle_kd_mse),
    "kl": (partial(kl, temperature=3.0), oracle_kl),
    "standardized": (partial(kl, temperature=2.0, standardize=True), oracle_standardized),
    "rkl": (partial(rkl, temperature=2.0), oracle_rkl),
    "jsd": (partial(jsd, temperature=2.0, beta=0.3), oracle_jsd),
    "skl": (partial(skl, temperature=2.0, skew=0.2), oracle_skl),
    "srkl": (partial(srkl, temperature=2.0, skew=0.2), oracle_srkl),
    "tvd": (partial(tvd, temperature=2.0), oracle_tvd),
    "dkd": (partial(dkd, temperature=2.0, alpha=0.7, beta=3.0), oracle_dkd),
    "nkd": (partial(nkd, temperature=2.0), oracle_nkd),
    "topk_tail": (partial(topk_tail, temperature=2.0, k=2), oracle_topk),
    "dist": (partial(dist, temperature=2.0, beta=0.5, gamma=2.0), oracle_dist),
    "bce": (bce, oracle_bce),
    "kd_bce": (partial(kd_bce, temperature=2.0), oracle_kd_bce),
}
EACH = pytest.mark.parametrize("name", CASES)
SOFTMAX = [name for name in CASES if "bce" not in name]
TAUGHT = [name for name in CASES if name != "bce"]


def numbered(*places, classes):
    """A label for each position."""
    return torch.from_numpy(np.arange(math.prod(places)) ** 2 % classes).reshape(places)


def holed(*places):
    """A mask that is False at every third position."""
    return torch.from_numpy(np.arange(math.prod(places)) % 3 != 1).reshape(places)


def inputs(*shape):
    """Student, teacher and labels."""
    return wave(1, *shape), wave(2, *shape), numbered(*shape[:-1], classes=shape[-1])


def value(name, student, teacher, labels, mask=None):
    """What a loss gives for those that it takes."""
    given = {"student": student, "teacher": teacher, "labels": labels, "mask": mask}
    roles = inspect.signature(CASES[name][0]).parameters
    return CASES[name][0](**{role: tensor for role, tensor in given.items() if role in roles})


@EACH
@pytest.mark.parametrize("shape", SHAPES)
def test_the_mean_over_all_positions(name, shape):
    given = inputs(*shape)
    rows = [x.flatten(0, -2).numpy() for x in given[:2]]
    assert value(name, *given).item() == pytest.approx(CASES[name][1](*rows, given[2].flatten().numpy()), rel=1e-10)


@EACH
@pytest.mark.parametrize("shape", SHAPES)
def test_the_mean_over_valid_positions(name, shape):
    given, mask = inputs(*shape), holed(*shape[:-1])
    expected = CASES[name][1](*(x[mask].numpy() for x in given))
    assert value(name, *given, mask).item() == pytest.approx(expected, rel=1e-10)


@EACH
def test_gradcheck_with_a_mask(name):
    student, teacher, labels = inputs(2, 3, 4)
    mask = holed(2, 3)
    assert torch.autograd.gradcheck(lambda x: value(name, x, teacher, labels, mask), student.requires_grad_())


@EACH
@pytest.mark.parametrize("content", [-math.inf, math.inf, math.nan])
def test_masked_positions_may_hold_anything(name, content):
    student, teacher, labels = inputs(2, 3, 5)
    mask = holed(2, 3)
    expected = value(name, student, teacher, labels, mask).item()
    student, teacher = (x.masked_fill(~mask.unsqueeze(-1), content) for x in (student, teacher))
    found = value(name, student.requires_grad_(), teacher, labels.masked_fill(~mask, 10**6), mask)
    found.backward()
    assert found.item() == pytest.approx(expected, rel=1e-12)
    assert student.grad.isfinite().all()
    assert student.grad[~mask].count_nonzero() == 0


@EACH
def test_nothing_valid_is_0(name):
    student, teacher, labels = inputs(2, 3, 5)
    found = value(name, student.requires_grad_(), teacher, labels, torch.zeros(2, 3, dtype=torch.bool))
    found.backward()
    assert found.item() == 0
    assert student.grad.count_nonzero() == 0


@EACH
def test_padding_of_the_vocabulary_changes_nothing(name):
    student, teacher, labels = inputs(2, 3, 5)
    wide = [torch.nn.functional.pad(x, (0, 2), value=-math.inf).requires_grad_() for x in (student, teacher)]
    found = value(name, *wide, labels)
    found.backward()
    assert found.item() == pytest.approx(value(name, student, teacher, labels).item(), rel=1e-12)
    assert wide[0].grad.isfinite().all()
    assert wide[0].grad[..., -2:].count_nonzero() == 0
    assert wide[1].grad is None


RULED_OUT = {"kd_mse": math.inf, "rkl": math.inf}
"""What a loss gives where the teacher alone rules out a class; finite in all others."""
FORBIDDEN = {name: math.inf for name in ("kd_ce", "kl", "standardized", "kd_mse", "dkd", "nkd", "topk_tail", "kd_bce")}
"""What a loss gives where the student alone rules out a class that is likely; finite in all others."""


@pytest.mark.parametrize("name", TAUGHT)
def test_a_class_that_the_teacher_alone_rules_out(name):
    student, teacher = wave(1, 6, 5).requires_grad_(), wave(2, 6, 5)
    teacher[:, 4] = -math.inf
    found = value(name, student, teacher, torch.zeros(6, dtype=torch.long))
    if name in RULED_OUT:
        assert found.item() == math.inf
        return
    found.backward()
    assert found.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", TAUGHT)
def test_a_class_that_the_student_alone_rules_out(name):
    student, teacher = wave(1, 6, 5), wave(2, 6, 5)
    student[:, 4], teacher[:, 4] = -math.inf, 9.0
    found = value(name, student.requires_grad_(), teacher, torch.zeros(6, dtype=torch.long))
    if name in FORBIDDEN:
        assert found.item() == math.inf
        return
    found.backward()
    assert found.isfinite()
    assert student.grad.isfinite().all()


@EACH
def test_large_logits(name):
    student, teacher, labels = (x.float() if x.is_floating_point() else x for x in inputs(4, 5))
    student = (student * 1e4).requires_grad_()
    found = value(name, student, teacher * 1e4, labels)
    found.backward()
    assert found.isfinite()
    assert student.grad.isfinite().all()


@EACH
@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 1), (3, 1), (1, 4), (2, 1, 4)])
def test_one_class_one_token_one_sample(name, shape):
    student, teacher, labels = inputs(*shape)
    found = value(name, student.requires_grad_(), teacher, labels)
    found.backward()
    assert found.isfinite()
    assert student.grad.isfinite().all()
    if name in SOFTMAX and shape[-1] == 1:
        assert found.item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@EACH
def test_short_floats_are_computed_in_float32(name, dtype):
    student, teacher, labels = inputs(4, 5)
    student, teacher = student.to(dtype), teacher.to(dtype)
    found = value(name, student, teacher, labels)
    assert found.dtype == torch.float32
    expected = CASES[name][1](student.double().numpy(), teacher.double().numpy(), labels.numpy())
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", SOFTMAX)
@settings(deadline=None, max_examples=25)
@given(shifts=st.lists(st.floats(-50, 50), min_size=4, max_size=4), seed=st.integers(0, 1000))
def test_a_constant_added_to_a_row_changes_nothing(name, shifts, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    labels = numbered(4, classes=5)
    moved = student + torch.tensor(shifts, dtype=torch.float64).unsqueeze(-1)
    same = value(name, student, teacher, labels).item()
    assert value(name, moved, teacher, labels).item() == pytest.approx(same, rel=1e-7)


@settings(deadline=None, max_examples=25)
@given(order=st.permutations(range(5)), seed=st.integers(0, 1000))
@EACH
def test_the_order_of_the_classes_is_irrelevant(name, order, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    labels = numbered(4, classes=5)
    places = torch.tensor([order.index(label) for label in labels.tolist()])
    same = value(name, student, teacher, labels).item()
    assert value(name, student[:, order], teacher[:, order], places).item() == pytest.approx(same, rel=1e-9)


@pytest.mark.parametrize("name", TAUGHT)
def test_shapes_that_do_not_fit(name):
    with pytest.raises(ObjectiveError) as caught:
        value(name, torch.zeros(2, 5), torch.zeros(2, 6), torch.zeros(2, dtype=torch.long))
    assert str(caught.value) == "classes differ: 5 and 6; student (2, 5), teacher (2, 6)"


@EACH
def test_a_mask_of_numbers_is_refused(name):
    with pytest.raises(ObjectiveError) as caught:
        value(name, *inputs(2, 5), torch.ones(2))
    assert str(caught.value) == "mask is torch.float32; expected torch.bool, as mask.bool() gives"


@pytest.mark.parametrize("name", ["dkd", "nkd"])
def test_labels_that_do_not_fit(name):
    with pytest.raises(ObjectiveError) as caught:
        value(name, torch.zeros(2, 5), torch.zeros(2, 5), torch.zeros(2, 5))
    assert str(caught.value) == "labels are torch.float32; expected torch.long, the number of each class"
