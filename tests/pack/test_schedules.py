"""Schedules against closed forms, and against the ones of transformers."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from hookbrew_plugins.schedules import Constant, Cosine, Linear, LinearDecay, LinearGrowth

PROGRESS = st.floats(0, 1)
STEPS = 20


def theirs(make, warmup):
    """The multipliers that a schedule of transformers gives for each of STEPS steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = make(optimizer, warmup, STEPS)
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("warmup", [0, 2, 10])
@pytest.mark.parametrize(
    ("options", "make"), [(Linear, get_linear_schedule_with_warmup), (Cosine, get_cosine_schedule_with_warmup)]
)
def test_the_same_learning_rates_as_transformers(options, make, warmup):
    at = options(warmup=warmup / STEPS).build()
    assert [at(step / STEPS) for step in range(STEPS)] == pytest.approx(theirs(make, warmup), abs=1e-12)


@given(PROGRESS)
@settings(deadline=None)
def test_growth_is_progress_and_decay_what_is_left(progress):
    assert LinearGrowth().build()(progress) == pytest.approx(progress, abs=1e-15)
    assert LinearDecay().build()(progress) == pytest.approx(1 - progress, abs=1e-15)


def test_textbrewer_weights_over_four_steps():
    grown = [0.25 * 4 * LinearGrowth().build()(step / 4) for step in range(4)]
    assert grown == [0.0, 0.25, 0.5, 0.75]
    assert [LinearDecay().build()(step / 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("options", [LinearDecay(start=0.9, end=0.3), LinearGrowth(start=0.9, end=0.3)])
def test_a_line_begins_and_ends_where_it_is_told(options):
    assert [options.build()(progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx([0.9, 0.6, 0.3])


@given(PROGRESS, st.floats(-10, 10))
@settings(deadline=None)
def test_constant(progress, value):
    assert Constant(value=value).build()(progress) == value


@pytest.mark.parametrize("options", [Linear, Cosine])
@given(warmup=PROGRESS, end=PROGRESS)
@settings(deadline=None)
def test_up_to_one_then_down_to_the_end(options, warmup, end):
    at = options(warmup=warmup, end=end).build()
    values = [at(warmup * i / 20) for i in range(20)] + [at(warmup)]
    assert values == sorted(values)
    assert at(0.0) == (0.0 if warmup else 1.0)
    assert at(warmup) == 1.0
    after = [at(warmup + (1 - warmup) * i / 20) for i in range(20)]
    assert all(one >= other - 1e-9 for one, other in pairwise(after))
    assert at(1.0) == pytest.approx(end if warmup < 1 else 1.0, abs=1e-9)


def test_halfway_down():
    assert Linear(warmup=0.5, end=0.2).build()(0.75) == pytest.approx(0.6)
    assert Cosine(warmup=0.5, end=0.2).build()(0.75) == pytest.approx(0.6)
    assert Cosine().build()(0.25) == pytest.approx((1 + math.sqrt(0.5)) / 2)


@pytest.mark.parametrize("options", [Linear, Cosine])
@pytest.mark.parametrize("key", ["warmup", "end"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_fractions_are_fractions(options, key, value):
    with pytest.raises(ValueError, match=key):
        options(**{key: value})


def test_schedules_import_no_torch():
    code = "import sys, hookbrew_plugins.schedules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
