"""Losses on attention against float64 formulas in NumPy, the numbers of TextBrewer, and their laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbrew.errors import ObjectiveError
from hookbrew_plugins.losses import attention_ce, attention_ce_mean, attention_kl, attention_mse, attention_mse_sum

MASK = torch.tensor([[True, True, True], [True, True, False]])
PADDING = -10000.0
SCORES = {
    "attention_mse": attention_mse,
    "attention_mse_sum": attention_mse_sum,
    "attention_ce": attention_ce,
    "attention_ce_mean": attention_ce_mean,
}
LOSSES = SCORES | {"attention_kl": attention_kl}
EACH = pytest.mark.parametrize("name", LOSSES)
OF_SCORES = pytest.mark.parametrize("name", SCORES)


def wave(start, *shape):
    """The deterministic inputs of the TextBrewer oracle: 2 sin(start + 0.37 i^2), i the flat index."""
    index = np.arange(math.prod(shape))
    return torch.from_numpy(2 * np.sin(start + 0.37 * index**2)).reshape(shape)


def given_to(name, *shape):
    """A student and a teacher, (B, H, L, S), of the kind that the loss takes."""
    sides = wave(1, *shape), wave(2, *shape)
    return tuple(side.softmax(-1) for side in sides) if name == "attention_kl" else sides


def logs(scores):
    """log softmax over the last dimension, in NumPy."""
    scores = scores - scores.max(-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def textbrewer(name, student, teacher, mask=None):
    """TextBrewer's formulas, written from its documentation; without a mask it zeroes what is below -0.001."""
    s, t = student.numpy(), teacher.numpy()
    if name.endswith(("sum", "mean")):
        merge = np.sum if name.endswith("sum") else np.mean
        s, t = merge(s, axis=1, keepdims=True), merge(t, axis=1, keepdims=True)
    low = (s <= -1e-3, t <= -1e-3)
    if "mse" in name:
        if mask is None:
            s, t = np.where(low[0], 0, s), np.where(low[1], 0, t)
        if mask is None:
            return ((s - t) ** 2).mean()
        m = mask.numpy().astype(float)
        return np.einsum("bhij,bi,bj->", (s - t) ** 2, m, m) / s.shape[1] / (m.sum(1) ** 2).sum()
    p = np.exp(logs(t)) if mask is not None else np.where(low[1], 0, np.exp(logs(t)))
    cells = -p * logs(s)
    if mask is None:
        return cells.sum(-1).mean()
    m = mask.numpy().astype(float)
    return np.einsum("bhij,bi,bj->", cells, m, m) / s.shape[1] / m.sum()


def kl(student, teacher, mask):
    """attention_kl, one row after the other."""
    found, rows = 0.0, 0
    for b, m in enumerate(mask.numpy()):
        for i in np.flatnonzero(m):
            rows += 1
            for q, p in zip(student[b, :, i, m].numpy(), teacher[b, :, i, m].numpy(), strict=True):
                p, q = p / p.sum(), q / q.sum()
                found += (p * np.log(p / q)).sum() / student.shape[1]
    return found / rows


def oracle(name, student, teacher, mask):
    """The value of each loss, by a formula of its own."""
    return kl(student, teacher, mask) if name == "attention_kl" else textbrewer(name, student, teacher, mask)


PUBLISHED = [
    ("attention_mse", 0.8475169055, 1.2594166887),
    ("attention_mse_sum", 2.5104643474, 3.3796706109),
    ("attention_ce", 0.8458234626, 0.8679102176),
    ("attention_ce_mean", 0.8042972506, 0.8250543511),
]


@pytest.mark.parametrize(("name", "bare", "masked"), PUBLISHED)
def test_digits_of_textbrewer(name, bare, masked):
    sides = wave(1, 2, 2, 3, 3), wave(2, 2, 2, 3, 3)
    assert textbrewer(name, *sides) == pytest.approx(bare, abs=5e-11)
    assert textbrewer(name, *sides, MASK) == pytest.approx(masked, abs=5e-11)
    if "mse" in name:
        assert SCORES[name](*sides, MASK).item() == pytest.approx(masked, abs=5e-11)


@OF_SCORES
def test_scores_with_padding_as_textbrewer_expects_it(name):
    """It divides by what the softmax gives to padding too: nothing, for scores of -10,000."""
    padded = [wave(start, 2, 2, 3, 3).masked_fill(~MASK[:, None, None, :], PADDING) for start in (1, 2)]
    expected = textbrewer(name, *padded, MASK)
    assert SCORES[name](*padded, MASK).item() == pytest.approx(expected, rel=1e-12)
    absent = [side.masked_fill(side == PADDING, -math.inf) for side in padded]
    assert SCORES[name](*absent, MASK).item() == pytest.approx(expected, rel=1e-12)


def test_without_a_mask_textbrewer_blanks_low_scores():
    blanked = [side.masked_fill(side <= -1e-3, 0.0) for side in (wave(1, 2, 2, 3, 3), wave(2, 2, 2, 3, 3))]
    assert attention_mse(*blanked).item() == pytest.approx(0.8475169055, abs=5e-11)


@EACH
@pytest.mark.parametrize("lengths", [(3, 3), (3, 2), (1, 3), (3, 0)])
def test_mean_over_what_is_valid(name, lengths):
    student, teacher = given_to(name, 2, 3, 3, 3)
    mask = torch.arange(3) < torch.tensor(lengths)[:, None]
    if "ce" in name:
        student, teacher = (side.masked_fill(~mask[:, None, None, :], PADDING) for side in (student, teacher))
    assert LOSSES[name](student, teacher, mask).item() == pytest.approx(oracle(name, student, teacher, mask), rel=1e-11)


@EACH
def test_keys_of_other_tokens_need_no_mask(name):
    student, teacher = given_to(name, 2, 3, 4, 6)
    parts = [LOSSES[name](s, t) for s, t in zip(student.split(1, 2), teacher.split(1, 2), strict=True)]
    assert LOSSES[name](student, teacher).item() == pytest.approx(sum(parts).item() / 4, rel=1e-12)


@EACH
def test_gradcheck_with_a_mask(name):
    student, teacher = given_to(name, 2, 2, 3, 3)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, teacher, MASK), student.requires_grad_())


@EACH
def test_more_padding_changes_nothing(name):
    student, teacher = given_to(name, 2, 2, 3, 3)
    wider = [torch.nn.functional.pad(side, (0, 2, 0, 2), value=0.3) for side in (student, teacher)]
    found = LOSSES[name](*wider, torch.nn.functional.pad(MASK, (0, 2)))
    assert found.item() == pytest.approx(LOSSES[name](student, teacher, MASK).item(), rel=1e-12)


@EACH
@pytest.mark.parametrize("content", [math.inf, -math.inf, math.nan])
def test_padding_may_hold_anything(name, content):
    student, teacher = given_to(name, 2, 2, 3, 3)
    expected = LOSSES[name](student, teacher, MASK).item()
    hole = ~(MASK[:, None, :, None] & MASK[:, None, None, :])
    holed = [side.masked_fill(hole, content).requires_grad_() for side in (student, teacher)]
    value = LOSSES[name](*holed, MASK)
    value.backward()
    assert value.item() == pytest.approx(expected, rel=1e-12)
    assert holed[0].grad.masked_select(hole).count_nonzero() == 0
    assert holed[0].grad.isfinite().all()
    assert holed[1].grad is None


@OF_SCORES
@pytest.mark.parametrize("sides", [(0, 1), (0,), (1,)])
def test_scores_of_keys_that_a_side_cannot_see_are_left_out(name, sides):
    pair = [wave(1, 2, 2, 3, 3), wave(2, 2, 2, 3, 3)]
    later = torch.ones(3, 3, dtype=torch.bool).triu(1)
    for side in sides:
        pair[side] = pair[side].masked_fill(later, -math.inf)
    filling = 0.0 if "mse" in name else PADDING
    expected = textbrewer(name, *(s.masked_fill(later, filling) for s in pair), torch.ones(2, 3))
    student = pair[0].requires_grad_()
    value = SCORES[name](student, pair[1])
    value.backward()
    assert value.item() == pytest.approx(expected, rel=1e-12)
    assert student.grad.isfinite().all()
    assert student.grad.masked_select(later).count_nonzero() == 0


@EACH
def test_queries_that_see_nothing(name):
    empty = 0.0 if name == "attention_kl" else -math.inf
    student, teacher = (side.clone() for side in given_to(name, 2, 2, 3, 3))
    expected = LOSSES[name](student[:, :, :2], teacher[:, :, :2]).item() * 2 / 3
    student[:, :, 2], teacher[:, :, 2] = empty, empty
    student.requires_grad_()
    value = LOSSES[name](student, teacher)
    value.backward()
    assert value.item() == pytest.approx(expected, rel=1e-12)
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("side", [0, 1])
def test_probabilities_of_a_query_that_one_side_has_nothing_for(side):
    pair = [x.clone() for x in given_to("attention_kl", 2, 2, 3, 3)]
    expected = attention_kl(*(x[:, :, :2] for x in pair)).item() * 2 / 3
    pair[side][:, :, 2] = 0.0
    student = pair[0].requires_grad_()
    value = attention_kl(student, pair[1])
    value.backward()
    assert value.item() == pytest.approx(expected, rel=1e-12)
    assert student.grad[:, :, 2].count_nonzero() == 0
    assert student.grad.isfinite().all()


@settings(deadline=None)
@given(shift=st.floats(-100, 100), seed=st.integers(0, 1000))
def test_a_constant_in_a_row_of_scores_changes_nothing(shift, seed):
    generator = torch.Generator().manual_seed(seed)
    s, t, row = torch.randn(3, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    moved = s + shift * row[..., :1]
    for loss in (attention_ce, attention_ce_mean):
        assert loss(moved, t).item() == pytest.approx(loss(s, t).item(), rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(order=st.permutations(range(4)), seed=st.integers(0, 1000))
def test_heads_have_no_order(order, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, 2, 4, 3, 3, generator=generator, dtype=torch.float64)
    for name, loss in LOSSES.items():
        s, t = scores.softmax(-1) if name == "attention_kl" else scores
        alone = loss(s[:, order], t).item()
        expected = loss(s, t).item()
        assert loss(s[:, order], t[:, order]).item() == pytest.approx(expected, rel=1e-12)
        if name.endswith(("sum", "mean")):
            assert alone == pytest.approx(expected, rel=1e-12)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), sharpness=st.floats(0.01, 30))
def test_kl_is_the_cross_entropy_less_the_entropy(seed, sharpness):
    generator = torch.Generator().manual_seed(seed)
    s, t = sharpness * torch.randn(2, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    value = attention_kl(s.softmax(-1), t.softmax(-1)).item()
    assert value >= -1e-12
    assert value == pytest.approx((attention_ce(s, t) - attention_ce(t, t)).item(), rel=1e-7, abs=1e-12)


def test_kl_of_a_key_that_the_student_rules_out_is_finite():
    student = torch.tensor([[[[1.0, 0.0]]]], requires_grad=True)
    value = attention_kl(student, torch.tensor([[[[0.5, 0.5]]]]))
    value.backward()
    assert value.item() == pytest.approx(math.log(0.5) - 0.5 * math.log(torch.finfo(torch.float32).tiny), rel=1e-6)
    assert student.grad.isfinite().all()


@EACH
def test_nothing_valid(name):
    student, teacher = given_to(name, 2, 2, 3, 3)
    value = LOSSES[name](student.requires_grad_(), teacher, torch.zeros_like(MASK))
    value.backward()
    assert value.item() == 0
    assert student.grad.count_nonzero() == 0


@EACH
def test_one_token_in_one_head(name):
    student, teacher = given_to(name, 1, 1, 1, 1)
    expected = (student - teacher).square().item() if "mse" in name else 0.0
    assert LOSSES[name](student, teacher).item() == pytest.approx(expected, abs=1e-12)


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_are_computed_in_float32(name, dtype):
    student, teacher = (side.to(dtype) for side in given_to(name, 2, 2, 3, 3))
    assert torch.equal(LOSSES[name](student, teacher, MASK), LOSSES[name](student.float(), teacher.float(), MASK))


@pytest.mark.parametrize("name", ["attention_mse_sum", "attention_ce_mean"])
def test_merged_heads_may_differ_in_number(name):
    student, teacher = wave(1, 2, 2, 3, 3), wave(2, 2, 1, 3, 3)
    twice = teacher.expand(-1, 2, -1, -1) / (2 if name.endswith("sum") else 1)
    assert SCORES[name](student, teacher).item() == pytest.approx(SCORES[name](student, twice).item(), rel=1e-12)


REFUSED = [
    ((2, 4, 3, 3), None, "numbers of heads differ: 2 and 4; student (2, 2, 3, 3), teacher (2, 4, 3, 3); "
     "attention_mse_sum and attention_ce_mean merge the heads, relation cuts them anew"),
    ((2, 2, 4, 4), None, "numbers of queries differ: 3 and 4; student (2, 2, 3, 3), teacher (2, 2, 4, 4)"),
    ((2, 2, 3, 4), None, "numbers of keys differ: 3 and 4; student (2, 2, 3, 3), teacher (2, 2, 3, 4)"),
    ((2, 3, 3), None, "expected (batch, heads, tokens, keys); student (2, 2, 3, 3), teacher (2, 3, 3)"),
    ((2, 2, 3, 3), torch.ones(2, 4) > 0, "mask is (2, 4); expected (2, 3), one entry for each token"),
    ((2, 2, 3, 3), torch.ones(2, 3), "mask is torch.float32; expected torch.bool, as mask.bool() gives"),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "mask", "said"), REFUSED)
def test_shapes_that_do_not_fit(shape, mask, said):
    with pytest.raises(ObjectiveError) as caught:
        attention_mse(torch.zeros(2, 2, 3, 3), torch.zeros(shape), mask)
    assert str(caught.value) == said


def test_a_mask_cannot_be_for_keys_of_other_tokens():
    said = r"^student is \(2, 2, 3, 5\): its 5 keys are not its 3 queries, and one mask cannot be for both$"
    with pytest.raises(ObjectiveError, match=said):
        attention_mse(torch.zeros(2, 2, 3, 5), torch.zeros(2, 2, 3, 5), MASK)
