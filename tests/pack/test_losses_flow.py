"""fsp and nst: the numbers of TextBrewer, float64 formulas in NumPy, and their laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hookbrew as hb
import hookbrew_plugins
from hookbrew.errors import ObjectiveError
from hookbrew.plugin import catalogue
from hookbrew_plugins.losses import fsp, nst

MASK = torch.tensor([[True, True, True], [True, True, False]])
HOLED = torch.tensor([[True, True, True], [False, True, True], [False, False, False]])
BOTH = pytest.mark.parametrize("loss", [fsp, nst])


def wave(start, *shape):
    """The deterministic inputs of the TextBrewer oracle: 2 sin(start + 0.37 i^2), i the flat index."""
    index = np.arange(math.prod(shape))
    return torch.from_numpy(2 * np.sin(start + 0.37 * index**2)).reshape(shape)


def sides(*shape):
    """Two layers of the student, two of the teacher."""
    return [wave(3, *shape), wave(5, *shape)], [wave(4, *shape), wave(6, *shape)]


def oracle_fsp(student, teacher, mask):
    found = []
    for b, m in enumerate(mask.numpy()):
        if m.any():
            (s, s2), (t, t2) = ([x[b].numpy()[m] for x in side] for side in (student, teacher))
            found.append(((s.T @ s2 / m.sum() - t.T @ t2 / m.sum()) ** 2).mean())
    return np.mean(found)


def oracle_nst(student, teacher, mask):
    found = []
    for b, m in enumerate(mask.numpy()):
        (s, s2), (t, t2) = ([x[b].numpy()[m] for x in side] for side in (student, teacher))
        found += list(((s @ s2.T / s.shape[1] - t @ t2.T / t.shape[1]) ** 2).flatten())
    return np.mean(found)


NUMBERS = [(fsp, None, 1.4269887801), (fsp, MASK, 1.5137297197), (nst, None, 0.7561536633), (nst, MASK, 1.0356805053)]


@pytest.mark.parametrize(("loss", "mask", "expected"), NUMBERS)
def test_the_numbers_of_textbrewer(loss, mask, expected):
    assert loss(*sides(2, 3, 4), mask).item() == pytest.approx(expected, abs=1e-9)
    assert loss(*map(tuple, sides(2, 3, 4)), mask).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("loss", "oracle"), [(fsp, oracle_fsp), (nst, oracle_nst)])
def test_means_over_what_is_valid(loss, oracle):
    student, teacher = sides(3, 3, 5)
    assert loss(student, teacher, HOLED).item() == pytest.approx(oracle(student, teacher, HOLED), rel=1e-12)
    full = torch.ones_like(HOLED)
    assert loss(student, teacher).item() == pytest.approx(oracle(student, teacher, full), rel=1e-12)


@BOTH
@pytest.mark.parametrize("content", [-math.inf, math.inf, math.nan])
def test_masked_positions_may_hold_anything(loss, content):
    student, teacher = sides(3, 3, 4)
    expected = loss(student, teacher, HOLED).item()
    student, teacher = ([x.masked_fill(~HOLED.unsqueeze(-1), content) for x in side] for side in (student, teacher))
    leaves = [x.requires_grad_() for x in student]
    found = loss(leaves, teacher, HOLED)
    found.backward()
    assert found.item() == pytest.approx(expected, rel=1e-12)
    for leaf in leaves:
        assert leaf.grad.isfinite().all()
        assert leaf.grad[HOLED].count_nonzero() > 0
        assert leaf.grad[~HOLED].count_nonzero() == 0


@BOTH
def test_nothing_valid_is_0(loss):
    student, teacher = sides(2, 3, 4)
    leaf = student[0].requires_grad_()
    found = loss(student, teacher, torch.zeros(2, 3, dtype=torch.bool))
    found.backward()
    assert found.item() == 0
    assert leaf.grad.count_nonzero() == 0


@BOTH
def test_gradcheck_of_both_layers_with_a_mask(loss):
    (first, second), teacher = sides(2, 3, 4)
    leaves = [x.requires_grad_() for x in (first, second)]
    assert torch.autograd.gradcheck(lambda *layers: loss(layers, teacher, MASK), leaves)


@BOTH
def test_short_floats_are_computed_in_float32(loss):
    student, teacher = ([x.bfloat16() for x in side] for side in sides(2, 3, 4))
    exact = loss(*([x.float() for x in side] for side in (student, teacher)))
    assert loss(student, teacher).dtype == torch.float32
    assert loss(student, teacher).item() == exact.item()


def test_widths():
    (narrow, narrow2), (wide, wide2) = sides(2, 3, 4)[0], sides(2, 3, 6)[1]
    assert nst([narrow, narrow2], [wide, wide2]).isfinite()
    assert fsp([narrow, wide], [narrow2, wide2]).isfinite()
    with pytest.raises(ObjectiveError) as caught:
        fsp([narrow, narrow2], [wide, wide2])
    assert str(caught.value) == (
        "features differ: 4 and 6; fsp relates features to features: give the loss a projection, or take nst, which "
        "relates tokens to tokens"
    )
    with pytest.raises(ObjectiveError) as caught:
        nst([narrow, wide], [narrow2, wide2])
    assert str(caught.value) == (
        "the two layers of one model have 4 and 6 features; nst multiplies them, and needs two layers of one width"
    )


@BOTH
def test_places_of_a_map_are_tokens(loss):
    student, teacher = sides(2, 4, 2, 3)
    tokens = [[x.flatten(2).mT for x in side] for side in (student, teacher)]
    assert loss(student, teacher).item() == loss(*tokens).item()


@BOTH
@settings(deadline=None, max_examples=25)
@given(order=st.permutations(range(5)), seed=st.integers(0, 1000))
def test_an_order_of_all_the_tokens_changes_nothing(loss, order, seed):
    numbers = torch.randn(4, 2, 5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    student, teacher = [*numbers[:2]], [*numbers[2:]]
    moved = ([x[:, order] for x in side] for side in (student, teacher))
    assert loss(*moved).item() == pytest.approx(loss(student, teacher).item(), rel=1e-9)


LAYER = torch.zeros(2, 3, 4)
WRONG = [
    (LAYER, [LAYER, LAYER], 'student gives a tensor (2, 3, 4); expected two layers, as in student = ["hidden[0]", '),
    ([LAYER, LAYER], [LAYER], 'teacher gives 1 tensors; expected two layers, as in teacher = ["hidden[0]", "hid'),
    ([LAYER, LAYER], [LAYER, LAYER[:, :2]], "numbers of tokens differ: 3 and 2; student (2, 3, 4) and (2, 3, 4), t"),
    ([LAYER, LAYER[:1]], [LAYER, LAYER], "batch sizes differ: 2 and 1; student (2, 3, 4) and (1, 3, 4), teacher (2"),
    ([LAYER[0]] * 2, [LAYER[0]] * 2, "expected (batch, tokens, features) or (batch, channels, height, width), got (3"),
]


@BOTH
@pytest.mark.parametrize(("student", "teacher", "message"), WRONG)
def test_shapes_that_do_not_fit(loss, student, teacher, message):
    with pytest.raises(ObjectiveError) as caught:
        loss(student, teacher)
    assert str(caught.value).startswith(message)


def test_the_other_names_of_textbrewer():
    pack = catalogue(discover=False, plugins=[hookbrew_plugins])
    assert pack.load("losses", "gram") is pack.load("losses", "fsp")
    assert pack.load("losses", "mmd") is pack.load("losses", "nst")


class Tokens(nn.Module):
    """Two layers on tokens."""

    def __init__(self, width):
        super().__init__()
        self.embed, self.one, self.two = nn.Embedding(9, 4), nn.Linear(4, width), nn.Linear(width, width)

    def forward(self, input_ids, attention_mask=None):
        return self.two(self.one(self.embed(input_ids)).tanh())


@pytest.mark.parametrize(
    ("name", "projection"), [("fsp", "linear"), ("gram", "linear"), ("nst", None), ("mmd", "relu")]
)
def test_in_a_run_micro_batches_are_one_batch(pack, name, projection):
    ids = torch.randint(9, (6, 5), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(5) < torch.tensor([5, 2, 1, 4, 0, 3]).unsqueeze(1)).long()
    whole = [{"input_ids": ids, "attention_mask": mask}]
    parts = [{"input_ids": ids[part], "attention_mask": mask[part]} for part in (slice(1), slice(1, 4), slice(4, 6))]
    weights = []
    for data, accumulate in ((whole, 1), (parts, 3)):
        torch.manual_seed(0)
        student, teacher = Tokens(3).double(), Tokens(6).double()
        table = hb.loss(name, student=["one", "two"], teacher=["one", "two"], projection=projection, weight=50.0)
        run = hb.Distillation(teacher, student, [table], catalogue=pack)
        before = student.one.weight.detach().clone()
        run.fit(data, steps=1, accumulate=accumulate, optimizer=torch.optim.SGD(student.parameters(), 0.1))
        assert not torch.allclose(student.one.weight, before)
        weights.append([*student.parameters(), *run.objective.extras.parameters()])
    assert len(weights[0]) == (5 if projection is None else 7)
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
