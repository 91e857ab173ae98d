"""Standardized logits, shifted teachers and temperatures for each row: oracles, TextBrewer's numbers, options."""

from __future__ import annotations

import inspect
import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hookbrew as hb
from hookbrew.config import structure_loss
from hookbrew.errors import ConfigError, ObjectiveError
from hookbrew.options import describe
from hookbrew_plugins.losses import dist, dkd, jsd, kd_ce, kd_mse, kl, nkd, rkl, skl, srkl, topk_tail, tvd
from hookbrew_plugins.losses.correlation import Dist
from hookbrew_plugins.losses.decoupled import NKD
from hookbrew_plugins.losses.divergences import KL, TVD
from hookbrew_plugins.losses.logits import KDCE, KDMSE
from hookbrew_plugins.losses.soften import standardized
from hookbrew_plugins.losses.teaching import cwsm, flsw, shifted
from hookbrew_plugins.losses.topk import TopKTail

TAUGHT = pytest.mark.parametrize(("options", "loss"), [(KDCE, kd_ce), (KDMSE, kd_mse), (KL, kl)])
MASK = [[True, True, False], [True, False, False]]


def wave(start, *shape):
    """The deterministic inputs of the TextBrewer oracle: 2 sin(start + 0.37 i^2), i the flat index."""
    index = np.arange(math.prod(shape))
    return torch.from_numpy(2 * np.sin(start + 0.37 * index**2)).reshape(shape)


# Temperatures for each row


def test_flsw_of_textbrewer():
    found = flsw(wave(7, 2, 5), wave(8, 2, 5))
    assert found.tolist() == pytest.approx([4.1883225953, 3.8116774047], abs=5e-11)


def test_cwsm_of_textbrewer():
    found = cwsm(wave(7, 2, 5), wave(8, 2, 5))
    assert found.tolist() == pytest.approx([3.1963491056, 4.8036508944], abs=5e-11)


def test_kd_ce_of_textbrewer_with_flsw():
    student, teacher = wave(7, 2, 5), wave(8, 2, 5)
    found = KDCE(dynamic="flsw", beta=1.0, gamma=2.0, t_squared=False).build()(student=student, teacher=teacher)
    assert found.item() == pytest.approx(1.6038862303, abs=5e-11)
    rows = kd_ce(student, teacher, temperature=flsw(student, teacher), t_squared=False)
    assert rows.item() == found.item()


def row_temperatures(rule, student, teacher, power):
    """T + beta (mean w - w) with T = 4 and beta = 1, in NumPy; student and teacher (N, C)."""
    if rule is flsw:
        ours, theirs = (x / (np.sqrt((x**2).sum(-1, keepdims=True)) + 1e-4) for x in (student, teacher))
        weights = (1 - (ours * theirs).sum(-1)) ** power
    else:
        powers = np.exp(student - student.max(-1, keepdims=True))
        weights = 1 / (powers.max(-1) / powers.sum(-1) + 1e-3)
    return 4 + weights.mean() - weights


@pytest.mark.parametrize("rule", [flsw, cwsm])
def test_the_mean_is_over_valid_rows(rule):
    student, teacher, mask = wave(1, 2, 3, 5), wave(2, 2, 3, 5), torch.tensor(MASK)
    expected = row_temperatures(rule, student[mask].numpy(), teacher[mask].numpy(), 2)
    student, teacher = (x.masked_fill(~mask.unsqueeze(-1), math.nan) for x in (student, teacher))
    found = rule(student, teacher, mask)
    assert found[mask].tolist() == pytest.approx(expected.tolist(), rel=1e-12)
    assert found.isfinite().all()


@TAUGHT
@pytest.mark.parametrize("dynamic", ["flsw", "cwsm"])
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 7), (2, 2, 3, 4)])
def test_every_row_has_its_own_temperature_and_t_squared(options, loss, dynamic, shape):
    student, teacher = wave(1, *shape), wave(2, *shape)
    mask = torch.from_numpy(np.arange(math.prod(shape[:-1])) % 3 != 1).reshape(shape[:-1])
    rows = [x[mask] for x in (student, teacher)]
    rule = {"flsw": flsw, "cwsm": cwsm}[dynamic]
    temperatures = row_temperatures(rule, rows[0].numpy(), rows[1].numpy(), 1.5)
    expected = np.mean(
        [loss(s[None], t[None], temperature=x).item() for s, t, x in zip(*rows, temperatures.tolist(), strict=True)]
    )
    built = options(temperature=4.0, dynamic=dynamic, beta=1.0, gamma=1.5).build()
    assert built(student=student, teacher=teacher, mask=mask).item() == pytest.approx(expected, rel=1e-12)


def test_temperatures_are_constants_to_the_gradient():
    student, teacher = wave(7, 2, 5).requires_grad_(), wave(8, 2, 5)
    assert not flsw(student, teacher).requires_grad
    assert not cwsm(student, teacher).requires_grad
    built = KL(dynamic="flsw").build()
    (found,) = torch.autograd.grad(built(student=student, teacher=teacher), student)
    fixed = kl(student, teacher, temperature=flsw(student, teacher))
    torch.testing.assert_close(found, torch.autograd.grad(fixed, student)[0])


def test_temperatures_stay_positive():
    """The numbers of TextBrewer here are -432.6 and -2.5, which turn the teacher upside down."""
    student = torch.zeros(4, 1000)
    student[:3] = torch.nn.functional.one_hot(torch.tensor([1, 2, 3]), 1000) * 50.0
    assert cwsm(student, student).min().item() == pytest.approx(0.1)
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert flsw(rows, rows[:1].expand(4, 2), temperature=1.0, coldest=0.5).min().item() == 0.5


@settings(deadline=None)
@given(seed=st.integers(0, 1000), beta=st.floats(0, 3), gamma=st.floats(0.5, 3))
def test_temperatures_are_around_the_given_one(seed, beta, gamma):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    found = flsw(student, teacher, temperature=50.0, beta=beta, gamma=gamma)
    assert found.mean().item() == pytest.approx(50.0)
    ours, theirs = (torch.nn.functional.normalize(x, dim=-1) for x in (student, teacher))
    apart = (1 - (ours * theirs).sum(-1)).tolist()
    pairs = sorted(zip(apart, found.tolist(), strict=True))
    assert all(hot >= cold - 1e-3 for (_, hot), (_, cold) in pairwise(pairs))


def test_agreement_that_rounds_above_1_has_a_power():
    logits = torch.full((2, 10), 1e4)
    assert flsw(logits, logits, gamma=1.5).tolist() == pytest.approx([4.0, 4.0], abs=1e-3)


def test_a_class_ruled_out_on_both_sides_is_no_part_of_the_similarity():
    student, teacher = wave(7, 2, 5), wave(8, 2, 5)
    wide = [torch.nn.functional.pad(x, (0, 2), value=-math.inf) for x in (student, teacher)]
    for rule in (flsw, cwsm):
        assert rule(*wide).tolist() == pytest.approx(rule(student, teacher).tolist(), rel=1e-12)


def test_a_temperature_for_each_row_must_fit():
    with pytest.raises(ObjectiveError) as caught:
        kl(torch.zeros(2, 3, 5), torch.zeros(2, 3, 5), temperature=torch.ones(2))
    assert str(caught.value) == "temperature is (2,); expected (2, 3), one for each position"


# Shifted teachers


def oracle_shift(teacher, labels):
    """Swap argmax and label of each row (N, C)."""
    out = teacher.copy()
    for row, label in zip(out, labels, strict=True):
        if label >= 0:
            first = row.argmax()
            row[first], row[label] = row[label], row[first]
    return out


@settings(deadline=None)
@given(seed=st.integers(0, 1000), labels=st.lists(st.sampled_from([-100, -1, 0, 1, 2, 3]), min_size=6, max_size=6))
def test_shift_swaps_the_first_class_and_the_label(seed, labels):
    teacher = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
    before = teacher.clone()
    expected = oracle_shift(teacher.numpy(), labels)
    flat = shifted(teacher, torch.tensor(labels))
    assert np.array_equal(flat.numpy(), expected)
    deep = shifted(teacher.view(2, 3, 4), torch.tensor(labels).view(2, 3))
    assert np.array_equal(deep.view(6, 4).numpy(), expected)
    assert torch.equal(teacher, before)


def test_a_shifted_teacher_is_always_right_and_as_sure():
    teacher, labels = wave(2, 2, 3, 5), torch.tensor([[0, 1, 2], [3, 4, 0]])
    found = shifted(teacher, labels)
    assert torch.equal(found.argmax(-1), labels)
    assert torch.equal(found.sort(-1).values, teacher.sort(-1).values)


@TAUGHT
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5)])
def test_shift_with_masks_and_without_labels(options, loss, shape):
    """TextBrewer fails on a mask with three dimensions, on -100 with two, and on transposed logits."""
    student, teacher = wave(1, *shape), wave(2, *shape).transpose(0, -1).contiguous().transpose(0, -1)
    labels = torch.tensor([3, -100, 0, 2, 1, -100]).view(shape[:-1])
    mask = torch.tensor([True, True, True, False, True, False]).view(shape[:-1])
    built = options(temperature=3.0, probability_shift=True).build()
    there = mask.flatten().numpy()
    swapped = oracle_shift(teacher.reshape(6, 5).numpy(), labels.flatten().tolist())
    expected = loss(student.reshape(6, 5)[there], torch.from_numpy(swapped[there]), temperature=3.0).item()
    labels[~mask] = 10**6
    teacher = teacher.masked_fill(~mask.unsqueeze(-1), math.nan)
    found = built(student=student, teacher=teacher, labels=labels, mask=mask)
    assert found.item() == pytest.approx(expected, rel=1e-12)
    assert found.item() != pytest.approx(loss(student, teacher, mask, temperature=3.0).item())


def test_shift_comes_before_the_temperatures():
    student, teacher, labels = wave(7, 2, 5), wave(8, 2, 5), torch.tensor([0, 3])
    found = KDCE(probability_shift=True, dynamic="flsw").build()(student=student, teacher=teacher, labels=labels)
    moved = shifted(teacher, labels)
    expected = kd_ce(student, moved, temperature=flsw(student, moved)).item()
    assert found.item() == pytest.approx(expected, rel=1e-12)


@TAUGHT
def test_labels_are_asked_for_only_to_shift(options, loss):
    del loss
    for dynamic in (None, "flsw", "cwsm"):
        assert "labels" not in inspect.signature(options(dynamic=dynamic).build()).parameters
        assert "labels" in inspect.signature(options(dynamic=dynamic, probability_shift=True).build()).parameters


def test_shift_refuses_labels_that_do_not_fit():
    with pytest.raises(ObjectiveError) as caught:
        shifted(torch.zeros(2, 3, 5), torch.zeros(2, dtype=torch.long))
    assert str(caught.value) == "labels are (2,); expected (2, 3), the student's shape (2, 3, 5) without its classes"


# Standardized logits

tail = partial(topk_tail, k=2)
STANDARDIZED = pytest.mark.parametrize("loss", [kd_ce, kd_mse, kl, rkl, jsd, skl, srkl, tvd, dkd, nkd, dist, tail])


def called(loss, student, teacher, **options):
    """A loss with labels if it wants them."""
    labels = {"labels": torch.tensor([0, 1, 2, 3])} if loss in (dkd, nkd) else {}
    return loss(student, teacher, **labels, **options)


@STANDARDIZED
def test_standardized_is_the_loss_of_standard_scores(loss):
    student, teacher = wave(1, 4, 5), wave(2, 4, 5)
    scores = [(x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True) for x in (student, teacher)]
    expected = called(loss, *scores, temperature=2.0).item()
    assert called(loss, student, teacher, temperature=2.0, standardize=True).item() == pytest.approx(expected, rel=1e-6)


@STANDARDIZED
@settings(deadline=None, max_examples=25)
@given(scale=st.floats(0.01, 100), shift=st.floats(-50, 50), seed=st.integers(0, 1000))
def test_standardized_knows_no_scale_and_no_offset(loss, scale, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    expected = called(loss, student, teacher, standardize=True).item()
    found = called(loss, student * scale + shift, teacher, standardize=True).item()
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_standard_scores_of_the_classes_that_are_there():
    logits = wave(1, 3, 5)
    wide = torch.nn.functional.pad(logits, (0, 2), value=-math.inf)
    found = standardized(wide)
    torch.testing.assert_close(found[:, :5], standardized(logits))
    assert found[:, 5:].isneginf().all()


@pytest.mark.parametrize("logits", [torch.zeros(2, 3), torch.full((2, 3), 7.0), torch.ones(2, 1)])
def test_a_row_without_deviation_is_uniform_and_has_no_gradient(logits):
    logits = logits.requires_grad_()
    found = standardized(logits)
    found.square().sum().backward()
    assert found.count_nonzero() == 0
    assert logits.grad.count_nonzero() == 0


# Options


def test_the_options_reach_the_function():
    student, teacher = wave(7, 2, 5), wave(8, 2, 5)
    for options, loss in ((KDCE, kd_ce), (KDMSE, kd_mse), (KL, kl)):
        made = options(temperature=3.0, t_squared=False, standardize=True).build()
        expected = loss(student, teacher, temperature=3.0, t_squared=False, standardize=True).item()
        assert made(student=student, teacher=teacher).item() == expected


@pytest.mark.parametrize(("options", "loss"), [(TVD, tvd), (NKD, nkd), (Dist, dist), (TopKTail, topk_tail)])
def test_standardize_reaches_the_function(options, loss):
    """It is the option that the other losses have, in the same words."""
    said = {option.name: option.doc for option in describe(KL)}["standardize"]
    assert {option.name: option.doc for option in describe(options)}["standardize"] == said
    student, teacher = wave(7, 4, 5), wave(8, 4, 5)
    labels = {"labels": torch.tensor([0, 1, 2, 3])} if options is NKD else {}
    plain, scored = (options(temperature=3.0, standardize=on).build() for on in (False, True))
    found = scored(student=student, teacher=teacher, **labels).item()
    assert found == called(loss, student, teacher, temperature=3.0, standardize=True).item()
    assert found != plain(student=student, teacher=teacher, **labels).item()


def test_what_a_configuration_may_say(pack):
    table = {"type": "kd_ce", "temperature": 4, "dynamic": "flsw", "beta": 1, "gamma": 2, "probability_shift": True}
    expected = KDCE(temperature=4.0, dynamic="flsw", beta=1.0, gamma=2.0, probability_shift=True)
    assert structure_loss(table, pack).options == expected
    with pytest.raises(ConfigError) as caught:
        structure_loss({"type": "kl", "dynamic": "flws"}, pack)
    assert str(caught.value) == "loss 'kl': dynamic: the string 'flws' is not a choice; did you mean 'flsw'?"


def test_a_run_with_a_shifted_teacher_reads_the_labels(pack):
    torch.manual_seed(0)
    teacher, student = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    batch = {"input": torch.randn(6, 4), "labels": torch.tensor([0, 1, 2, 0, 1, 2])}
    run = hb.Distillation(teacher, student, [hb.loss("kl", probability_shift=True), hb.loss("kl")], catalogue=pack)
    with run.objective.attached():
        run.objective.measure(batch)
        run.objective.forward(batch)
        means = run.objective.means(batch)
    logits = student(batch["input"]), shifted(teacher(batch["input"]), batch["labels"])
    assert means["kl"].item() == pytest.approx(kl(*logits).item(), rel=1e-5)
    assert means["kl_2"].item() != pytest.approx(means["kl"].item())
