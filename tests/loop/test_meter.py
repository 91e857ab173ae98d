"""The numbers of steps until their row: the same sums however they are fetched, and nothing kept that is large."""

import gc
import math
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef

import hookbrew as hb
from hookbrew.loop import meter as module
from hookbrew.loop.meter import Meter
from tests.offering import offering

CPU = torch.device("cpu")
FLOATS = st.floats(-8, 8, width=32)
STEPS = st.lists(st.tuples(FLOATS, FLOATS, st.floats(0, 9, width=32), st.integers(0, 4)), min_size=1, max_size=9)


def stepped(meter, step, *, vector=False):
    """Give a meter one step of two terms, (mean, mean, norm, count of the second)."""
    first, second, norm, count = step
    counts = torch.tensor([2.0, float(count)]) if vector else [2.0, torch.tensor(float(count))]
    meter.step([(torch.tensor([first, second]), counts)], torch.tensor(first + second), torch.tensor(norm), 3)


def told(meter):
    """A row without its speed."""
    record = meter.row()
    del record["samples_per_second"]
    return record


@given(STEPS, st.data())
def test_a_row_is_the_mean_over_what_was_counted(steps, data):
    """Against sums in Python's exact arithmetic; counts as numbers, as scalars or as one tensor."""
    meter = Meter(["a", "b"], CPU)
    for step in steps:
        stepped(meter, step, vector=data.draw(st.booleans()))
    record = told(meter)
    close = {"rel_tol": 1e-6, "abs_tol": 1e-6}
    assert math.isclose(record["loss/a"], math.fsum(2 * s[0] for s in steps) / (2 * len(steps)), **close)
    assert ("loss/b" in record) == any(s[3] for s in steps)
    if "loss/b" in record:
        whole = math.fsum(s[1] * s[3] for s in steps) / sum(s[3] for s in steps)
        assert math.isclose(record["loss/b"], whole, **close)
    assert record["grad_norm"] == steps[-1][2]


@given(st.lists(st.lists(FLOATS.flatmap(lambda x: st.sampled_from([x, torch.tensor(x)])) | FLOATS, max_size=4)))
def test_numbers_are_the_same_in_one_transfer(groups):
    """Numbers, scalars on a device among them, and whole tensors; one of them may be empty."""
    groups = [*groups, torch.tensor([1.0, 2.0]), [], torch.zeros(0)]
    whole = [list(map(float, group)) for group in groups]
    assert module.read(groups) == module.fetched(groups) == whole


@given(STEPS, st.integers(0, 8))
def test_a_checkpoint_in_between_changes_no_bit(steps, place):
    """Sums are made one after the other, so it does not matter where they were interrupted."""
    meter, other, whole = (Meter(["a", "b"], CPU) for _ in range(3))
    for number, step in enumerate(steps):
        if number == place:
            other.load_state_dict(meter.state_dict())
            meter = other
        stepped(meter, step)
        stepped(whole, step)
    assert told(meter) == told(whole)


def test_without_rows_steps_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(module, "FULL", 3)
    meter, norms = Meter(["a"], CPU), []
    for number in range(8):
        norm = torch.tensor(float(number))
        norms.append(weakref.ref(norm))
        meter.step([(torch.ones(1), [1.0])], torch.tensor(1.0), norm, 1)
        del norm
    assert [number for number, norm in enumerate(norms) if norm() is not None] == [6, 7]
    assert told(meter) == {"loss": 1.0, "loss/a": 1.0, "grad_norm": 7.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_was_not_finite_spoils_the_row_or_its_step_is_left_out(bad):
    for skipping in (False, True):
        meter = Meter(["a", "b"], CPU, skipping=skipping)
        for norm in (1.0, bad, 2.0):
            stepped(meter, (1.0, 1.0, norm, 1))
        record = told(meter)
        if skipping:
            assert record == {"loss": 2.0, "grad_norm": 2.0, "loss/a": 1.0, "loss/b": 1.0, "skipped": 1, "streak": 0}
        else:
            assert math.isnan(record["grad_norm"])


LARGE = []
"""The memory that the loss below was computed in."""


def first(student, teacher, mask=None):
    """A loss that is one number of a large tensor, in its memory."""
    found = (student - teacher).square()
    LARGE.append(StorageWeakRef(found.untyped_storage()))
    return found.flatten()[0]


class Alive:
    """How many of those there are at the end of each step."""

    def __init__(self):
        self.found = []

    def step_end(self, state):
        """Look; the loss of this step is still there for callbacks."""
        state.loss = None
        gc.collect()
        self.found.append(sum(not storage.expired() for storage in LARGE))


def test_a_loss_keeps_nothing_of_what_it_was_taken_out_of(tagger, batches):
    """A value that is a view would hold all of it until the next row."""

    alive = Alive()
    run = hb.Distillation(tagger(12), tagger(8), [hb.loss("mine")], catalogue=offering(lambda _: first))
    run.fit(batches([3, 2], [4, 1]), epochs=2, callbacks=[alive], log_every=100)
    assert alive.found == [0] * 4
