"""`fit(resume=True)`: a training in Python that goes on from its checkpoints, or says why it cannot."""

import logging

import pytest
import torch
from torch.utils.data import DataLoader

import hookbrew as hb
from hookbrew.errors import ConfigError, ResumeError


class Stop(Exception):
    pass


class Ends:
    """Raises after a step."""

    def __init__(self, at):
        self.at = at

    def step_start(self, state):
        if state.step == self.at:
            raise Stop


@pytest.fixture
def fit(tagger, batches, pack, tmp_path):
    """fit("name", ends at a step, ...): the student after a fit into a folder of that name."""
    rows = [{k: v[0] for k, v in batch.items()} for batch in batches(*[[4]] * 12)]

    def make(name, ends=None, shuffle=False, loader=None, **options):
        torch.manual_seed(0)
        teacher, student = tagger(12), tagger(8, dropout=0.2)
        run = hb.Distillation(teacher, student, [hb.loss("kd_ce"), hb.loss("ce")], catalogue=pack)
        callbacks = [hb.callback("checkpoint", every=2), *([Ends(ends)] if ends else [])]
        options = {"epochs": 2, "optimizer": torch.optim.AdamW(student.parameters(), 1e-2)} | options
        loader = DataLoader(rows, batch_size=2, shuffle=shuffle) if loader is None else loader
        try:
            run.fit(loader, callbacks=callbacks, output=tmp_path / name, **options)
        except Stop:
            assert ends
        return torch.cat([p.detach().flatten() for p in student.parameters()])

    return make


def test_it_goes_on_exactly(fit, caplog):
    """In the middle of an epoch too, when the order is fixed; and it begins where there is nothing."""
    whole = fit("whole", resume=True)
    fit("cut", ends=6)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(fit("cut", resume=True), whole)
    assert not caplog.records


def test_an_order_that_is_drawn_anew(fit, caplog):
    fit("cut", ends=6, shuffle=True)
    with caplog.at_level(logging.WARNING):
        fit("cut", resume=True, shuffle=True)
    assert "step 4 is in the middle of an epoch, whose order the DataLoader draws anew" in caplog.text


def test_another_pace(fit):
    fit("cut", ends=6)
    with pytest.raises(ResumeError, match=r"train.accumulate: 1 before, 2 now"):
        fit("cut", resume=True, accumulate=2)


def test_no_checkpoints(tagger, batches, pack, tmp_path):
    run = hb.Distillation(tagger(12), tagger(8), [hb.loss("kd_ce")], catalogue=pack)
    for options in ({"output": tmp_path / "a"}, {"callbacks": [hb.callback("checkpoint")]}):
        with pytest.raises(ConfigError, match="there are no checkpoints to go on from"):
            run.fit(batches([3, 2]), steps=1, resume=True, **options)
