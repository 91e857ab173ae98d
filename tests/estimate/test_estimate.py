"""What is estimated for several processes, beside what these have."""

import os
from pathlib import Path

import attrs
import pytest

from hookbrew.estimate import Hardware, Measured, Trail, Weight, estimated
from hookbrew.estimate.estimate import straight
from tests.estimate import towers
from tests.estimate.peaks import peak
from tests.estimate.towers import HEAVY

NEAR = 0.15
"""How far an estimate may be off."""
WAYS = ["DDP", "FSDP2", "FSDP2, both"]


@pytest.fixture(scope="module")
def ranks(launched):
    return launched(Path(__file__).with_name("ranks_estimate.py"), towers.prepare)


@pytest.fixture(scope="module")
def more(launched):
    """The kinds that take longer."""
    os.environ["HOOKBREW_HEAVY"] = "slow"
    try:
        yield launched(Path(__file__).with_name("ranks_estimate.py"), towers.prepare)
    finally:
        del os.environ["HOOKBREW_HEAVY"]


@pytest.mark.parametrize("heavy", HEAVY)
def test_memory_of_one_process(lines, pack, heavy):
    really = peak("tower.toml", HEAVY[heavy], pack)
    assert lines(*HEAVY[heavy], most=1)[1, "alone"].peak == pytest.approx(really, rel=NEAR)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("heavy", towers.FAST)
def test_memory_of_two_processes(lines, ranks, heavy, way):
    found = lines(*HEAVY[heavy])[2, way].peak
    assert ranks(f"{heavy} {way}") == pytest.approx([found] * 2, rel=NEAR)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("heavy", [heavy for heavy in HEAVY if heavy not in towers.FAST])
def test_memory_of_two_processes_at_length(lines, more, heavy, way):
    found = lines(*HEAVY[heavy])[2, way].peak
    assert more(f"{heavy} {way}") == pytest.approx([found] * 2, rel=NEAR)


def test_what_is_measured(found):
    """Sizes are those of the models, and operations those of their products."""
    one = found(*HEAVY["weights"])
    student = 200 * 256 + 3 * (12 * 256**2 + 11 * 256) + 256 * 3 + 3
    mine = [weight for weight in one.weights if weight.unit is not None]
    assert sum(weight.size for weight in mine) == 4 * student
    assert {weight.unit for weight in one.weights} == {-1, 0, 1, 2, None}
    assert all(weight.gradient == weight.size for weight in one.weights)
    assert sum(w.moments for w in one.weights) == pytest.approx(2 * sum(w.size for w in one.weights), rel=0.01)
    per_token = 3 * 12 * 256**2
    assert one.flops["student"] == pytest.approx(2 * 8 * per_token, rel=0.05)
    assert one.flops["backward"] == pytest.approx(2 * (one.flops["student"] + one.flops["losses"]), rel=0.1)
    assert [trail.samples for trail in one.trails] == [4, 2]


def test_an_average_of_the_student_counts(found):
    without, beside = found(), found("callbacks=[{type='ema'}]")
    weights = sum(weight.size for weight in without.weights if weight.unit is not None)
    assert (without.average, beside.average) == (0, weights)


def simple(**other):
    """Two layers of 100 bytes beside a root of 50; activations of 10 a sample."""
    weights = [Weight(50, 50, 100, -1), Weight(100, 100, 200, 0), Weight(100, 100, 200, 1)]
    trails = [Trail(8, 80, [(2, 80), (1, 40), (0, 20)], 0, 0), Trail(4, 40, [(2, 40), (1, 20), (0, 10)], 0, 0)]
    facts = {"buffers": 0, "teacher": 60, "gathered": 0, "average": 0, "temporary": 0, "update": 0.0}
    facts |= {"accumulate": 1, "samples": 8, "seconds": [0.8, 0.4], "flops": {"student": 2.0, "backward": 4.0}}
    return Measured(**{"weights": weights, "trails": trails, **facts, **other})


def at(found, processes, way, **hardware):
    on = Hardware(**{"memory": None, "bandwidth": 1e3, **hardware})
    return next(
        line for line in estimated(found, on, processes).lines if (line.processes, line.way) == (processes, way)
    )


def test_parts_of_one_and_of_several():
    one = at(simple(), 1, "alone")
    assert one.memory == {
        **{"weights": 250, "optimizer": 500, "average": 0, "teacher": 60},
        **{"gradients": 250, "activations": 0, "communication": 0},
    }
    ddp = at(simple(), 4, "DDP")
    assert (ddp.memory["weights"], ddp.memory["communication"], ddp.batch) == (250, 250, 2)
    shared = at(simple(), 4, "FSDP2")
    assert (shared.memory["weights"], shared.memory["optimizer"], shared.memory["teacher"]) == (62.5, 125, 60)
    assert at(simple(), 4, "FSDP2, both").memory["teacher"] == 15
    assert shared.peak < ddp.peak


def test_what_fits_and_up_to_which_batch():
    found = simple(trails=[attrs.evolve(trail, forward=100 * trail.samples) for trail in simple().trails])
    one = at(found, 1, "alone", memory=(810 + 100 * 5) / 0.9)
    assert (one.fits, one.largest) == (False, 5)
    roomy = at(found, 1, "alone", memory=1e5)
    assert (roomy.fits, roomy.largest) == (True, (9e4 - 810) // 100)
    none = at(found, 1, "alone", memory=100)
    assert (none.fits, none.largest) == (False, 0)
    assert at(found, 1, "alone").fits is None


def test_time():
    assert at(simple(), 1, "alone").step == pytest.approx(0.8)
    fast = at(simple(), 2, "DDP", bandwidth=1e9)
    assert (fast.step, fast.rate) == pytest.approx((0.4, 20.0))
    slow = at(simple(), 2, "DDP", bandwidth=100)
    assert slow.communication == pytest.approx(2 * 250 / 2 / 100)
    assert slow.step == pytest.approx(0.4 + slow.communication - 0.4 * 2 / 3)
    shared = at(simple(), 2, "FSDP2", bandwidth=100)
    assert shared.communication == pytest.approx((2 * 250 + 250) / 2 / 100)
    assert at(simple(), 2, "DDP", flops=12.0).compute == pytest.approx(4 * 6 / 12)
    assert at(simple(accumulate=3), 1, "alone").rate == pytest.approx(10)


def test_which_numbers_of_processes():
    on = Hardware(memory=None, bandwidth=1.0)
    assert [line.processes for line in estimated(simple(teacher=0), on, 6).lines] == [1, 2, 2, 4, 4, 6, 6]
    refused = estimated(simple(), on, 4, "it is a number")
    assert [line.way for line in refused.lines] == ["alone", "DDP", "DDP"]


def test_a_line_through_two_sizes():
    assert straight([8, 4], [90, 50], 2) == 30
    assert straight([8, 4], [10, 50], 16) == 0
    assert straight([1], [5], 3) == 15
