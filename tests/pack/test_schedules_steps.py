"""Schedules in pieces, against those of torch and against closed forms."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LinearLR, MultiStepLR, StepLR

import hookbrew as hb
from hookbrew.errors import ConfigError
from hookbrew.testing import check_schedule
from hookbrew_plugins.schedules import Linear, Piecewise, Step, Warmup

PROGRESS = st.floats(0, 1)
STEPS = 40


def theirs(make):
    """The multipliers that a scheduler of torch gives for each of STEPS steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def ours(options):
    """The multipliers that a schedule gives for each of STEPS steps."""
    at = options.build()
    return [at(step / STEPS) for step in range(STEPS)]


@pytest.mark.parametrize("every", range(1, STEPS + 1))
def test_steps_of_one_length_as_torch_has_them(every):
    options = Step(factor=0.5, every=every / STEPS)
    assert ours(options) == pytest.approx(theirs(lambda o: StepLR(o, every, 0.5)), rel=1e-12)


@pytest.mark.parametrize("at", [[1], [20, 30], [3, 7, 12, 39], range(1, STEPS)])
def test_milestones_as_torch_has_them(at):
    options = Step(factor=0.7, milestones=[step / STEPS for step in at])
    assert ours(options) == pytest.approx(theirs(lambda o: MultiStepLR(o, [*at], 0.7)), rel=1e-12)


def test_a_step_that_is_told_nothing():
    assert ours(Step()) == pytest.approx([1.0] * 20 + [0.1] * 10 + [0.01] * 10)


@given(st.integers(1, 60), st.floats(0.01, 3), PROGRESS)
@settings(deadline=None)
def test_every_is_its_milestones(parts, factor, progress):
    """The same jumps, however they are told."""
    at = [i / parts for i in range(1, parts + 1)]
    every, listed = Step(factor=factor, every=1 / parts).build(), Step(factor=factor, milestones=at).build()
    for place in (progress, *at):
        assert every(place) == pytest.approx(listed(place), rel=1e-9)


@pytest.mark.parametrize("steps", [4, 10, 20, 35])
@pytest.mark.parametrize("start", [0.25, 0.5])
def test_a_warmup_as_torch_has_it(steps, start):
    options = Warmup(share=steps / STEPS, start=start)
    assert ours(options) == pytest.approx(theirs(lambda o: LinearLR(o, start, 1.0, steps)), rel=1e-9)


@given(PROGRESS, PROGRESS)
@settings(deadline=None)
def test_a_warmup_is_the_beginning_of_linear(share, progress):
    warm, linear = Warmup(share=share).build(), Linear(warmup=share).build()
    assert warm(progress) == pytest.approx(linear(progress) if progress < share else 1.0)
    assert warm(1.0) == 1.0


def test_a_warmup_of_nothing_is_constant():
    assert ours(Warmup(share=0.0)) == [1.0] * STEPS


@st.composite
def points(draw):
    """Points of rising progress."""
    places = sorted(draw(st.sets(st.integers(0, 1000), min_size=1, max_size=6)))
    return [(place / 1000, draw(st.floats(-10, 10))) for place in places]


@given(points(), PROGRESS)
@settings(deadline=None)
def test_lines_as_numpy_draws_them(known, progress):
    at = Piecewise(points=known).build()
    for place in (progress, *(x for x, _ in known)):
        assert at(place) == pytest.approx(float(np.interp(place, *zip(*known, strict=True))), abs=1e-9)


@given(points(), PROGRESS)
@settings(deadline=None)
def test_jumps_keep_the_earlier_value(known, progress):
    at = Piecewise(points=known, interpolate="constant").build()
    for place in (progress, *(x for x, _ in known)):
        reached = [y for x, y in known if x <= place + 1e-9]
        assert at(place) == (reached or [known[0][1]])[-1]


@given(points())
@settings(deadline=None)
def test_any_points_make_a_schedule(known):
    check_schedule(Piecewise(points=known))
    check_schedule(Piecewise(points=known, interpolate="constant"))


def test_piecewise_that_is_told_nothing_is_a_linear_decay():
    assert ours(Piecewise()) == pytest.approx([1 - step / STEPS for step in range(STEPS)])


def test_a_trapezoid():
    at = Piecewise(points=[(0.0, 0.0), (0.25, 1.0), (0.75, 1.0), (1.0, 0.0)]).build()
    assert [at(i / 8) for i in range(9)] == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 0.5, 0])
    down = [at(0.75 + i / 80) for i in range(21)]
    assert all(one > other for one, other in pairwise(down))


@pytest.mark.parametrize(
    ("type", "options", "message"),
    [
        ("step", {"factor": 0}, "factor: must be > 0: 0.0"),
        ("step", {"every": 0}, "every: must be > 0: 0.0"),
        ("step", {"every": 2}, "every: must be <= 1: 2.0"),
        ("step", {"milestones": []}, "milestones: must be numbers > 0 and <= 1: []"),
        ("step", {"milestones": [0.5, 30]}, "milestones: must be numbers > 0 and <= 1: [0.5, 30.0]"),
        ("step", {"milestones": [0.5, 0.5]}, "milestones: must rise: [0.5, 0.5]"),
        ("step", {"milestones": [0.5], "every": 0.5}, "milestones: cannot stand beside every; leave one of them out"),
        ("piecewise", {"points": []}, "points: must have one point at least"),
        ("piecewise", {"points": [[0, 1, 2]]}, "points[0]: expected a list of 2, got 3"),
        ("piecewise", {"points": [[0, 1], ["x", 2]]}, "points[1][0]: expected a number, got the string 'x'"),
        ("piecewise", {"points": [[0, 1], [30, 2]]}, "points: must have progress from 0 to 1: 30.0"),
        ("piecewise", {"points": [[0, float("inf")]]}, "points: must have finite values: inf"),
        ("piecewise", {"points": [[0.5, 1], [0.5, 2]]}, "points: must rise in progress: 0.5 comes after 0.5"),
        (
            "piecewise",
            {"interpolate": "cubic"},
            "interpolate: the string 'cubic' is not a choice; one of: constant, linear",
        ),
        ("warmup", {"share": 1.5}, "share: must be <= 1: 1.5"),
        ("warmup", {"start": -1}, "start: must be >= 0: -1.0"),
    ],
)
def test_what_a_schedule_may_not_be(pack, type, options, message):
    run = hb.Distillation(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), [hb.loss("kd_ce")], catalogue=pack)
    with pytest.raises(ConfigError) as caught:
        run.fit([], steps=1, lr_schedule=hb.schedule(type, **options))
    assert str(caught.value) == f"schedule {type!r}: {message}"
