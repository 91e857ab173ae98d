"""Runs that go on where it is hard to: rows cut off twice, damaged checkpoints, an end that was cut, odd students."""

import json
import shutil
from datetime import date

import pytest
import torch

from hookbrew.run import resume, run
from hookbrew.store import Store
from tests.run.compare import end, require_equal


def rows(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def callbacks(*tables):
    return f"callbacks=[{', '.join('{ ' + table + ' }' for table in tables)}]"


def test_rows_cut_off_twice(toy, known):
    """A checkpoint made before the first row of a run that goes on knows how long the file is by then."""
    sets = ["train.log_every=1", "train.epochs=4"]
    keeps = "type='checkpoint', every=2"
    with pytest.raises(RuntimeError, match="here"):  # rows up to 15, a checkpoint of 14
        run("toy.toml", [*sets, callbacks(keeps, "type='fall', at=16")], catalogue=known, quiet=True)
    newest = toy / "runs/toy/checkpoints/step-00000014"
    for path in (toy / "runs/toy/checkpoints").iterdir():
        if path != newest:
            shutil.rmtree(path)
    with (toy / "runs/toy/metrics.jsonl").open("a") as file:
        file.write('{"step": 16, "padding": "' + "x" * 1000 + '"}\n')
    quiet = ["train.log_every=1000"]
    with pytest.raises(RuntimeError, match="here"):  # no row, a checkpoint of 16
        resume("runs/toy", [*quiet, callbacks(keeps, "type='fall', at=17")], catalogue=known, quiet=True)
    size = (toy / "runs/toy/metrics.jsonl").stat().st_size
    assert max(path.name for path in newest.parent.iterdir()) == "step-00000016"
    told = torch.load(newest.with_name("step-00000016") / "callbacks.pt", weights_only=True)["metrics"]
    assert told == {"bytes": size}


def test_damaged_newer_checkpoints_do_not_count(tmp_path):
    """A training that went on from an older one keeps what it makes, not what it could not read."""
    store = Store(tmp_path / "checkpoints", keep_last=2)
    for step in (9, 11, 12):
        store.write(step, {"a": b"a"}, {})
    for step in (11, 12):
        (store.place(step) / "a").write_bytes(b"b")
    store.write(10, {"a": b"a"}, {})
    store.prune(newest=10)
    assert store.steps() == [10, 9]


@pytest.mark.parametrize("event", ["run_end", "epoch_end"])
@pytest.mark.parametrize("every", [1, 5])
def test_an_average_whose_end_was_cut(toy, known, event, every):
    """The average is the student at the end, in whatever order the callbacks stand."""
    tables = ["type='weights'", "type='ema', decay=0.9", f"type='checkpoint', every={every}, epochs=1"]
    run("toy.toml", [callbacks(*tables), "output=runs/whole"], catalogue=known, quiet=True)
    fall = f"type='fall', at=12, event='{event}'"
    with pytest.raises(RuntimeError, match="here"):
        run("toy.toml", [callbacks(*tables, fall)], catalogue=known, quiet=True)
    resume("runs/toy", [callbacks(*tables)], catalogue=known, quiet=True)
    for name in ("final", "checkpoints/step-00000012"):
        found, expected = ((toy / f"runs/{run}/{name}/student.safetensors").read_bytes() for run in ("toy", "whole"))
        assert found == expected


def test_the_file_as_it_was_given_stays(toy, known):
    given = (toy / "toy.toml").read_text()
    run("toy.toml", ["train.epochs=1"], catalogue=known, quiet=True)
    resume("runs/toy", ["train.epochs=2"], catalogue=known, quiet=True)
    assert (toy / "runs/toy/config.toml").read_text() == given
    assert "epochs = 2" in (toy / "runs/toy/resolved.toml").read_text()


ODD = '''

class Odd(Dropping):
    """Ties weights, has buffers of all kinds, and a parameter that lies across."""

    def __init__(self):
        super().__init__()
        self.layers[1].weight = self.layers[0].weight
        self.across = nn.Parameter(torch.randn(3, 8).t())
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("gone", torch.zeros(2), persistent=False)

    def forward(self, input_ids, attention_mask=None):
        if self.training:
            self.count += 1
            self.mask.logical_not_()
        logits = super().forward(input_ids, attention_mask)
        return logits + self.across.sum(0) * self.mask + self.count % 3


class Half(Dropping):
    """Computes in bf16."""

    def __init__(self):
        super().__init__()
        self.bfloat16()


def dated(since):
    return samples()
'''


@pytest.fixture
def odd(folder):
    with (folder / "toyland.py").open("a") as file:
        file.write(ODD)
    return folder


OPTIMIZERS = "AdamW SGD Adagrad RMSprop NAdam ASGD Rprop Adadelta RAdam Adamax Adafactor"


@pytest.mark.parametrize("kind", OPTIMIZERS.split())
@pytest.mark.parametrize("student", ["Odd", "Half"])
def test_students_and_optimizers(odd, train, student, kind):
    sets = [f"student.factory=toyland:{student}", f"optimizer.type={kind}"]
    require_equal(end(train("struck", [3, 8], *sets)), end(train("whole", (), *sets)))


def test_a_date_in_the_configuration(odd, train):
    sets = ["data.train.factory=toyland:dated", f"data.train.since={date(2026, 1, 2)}"]
    require_equal(end(train("struck", [3], *sets)), end(train("whole", (), *sets)))


@pytest.mark.parametrize("name", ["it's", 'a "b" c', "back\\slash", "both'\"", "ünï", "x" * 200])
def test_folders_of_any_name(toy, known, name, monkeypatch):
    run("toy.toml", ["train.epochs=1", "output=runs/plain"], catalogue=known, quiet=True)
    (toy / "runs/plain").rename(toy / f"runs/{name}")
    (toy / "else").mkdir()
    monkeypatch.chdir(toy / "else")
    state = resume(toy / f"runs/{name}", ["train.epochs=2"], catalogue=known, quiet=True)
    assert state.folder == toy / f"runs/{name}"
    assert state.step == 12


def test_a_run_that_was_stopped_early_stays_stopped(toy, known):
    impatient = "type='early_stop', metric='accuracy', min_delta=2.0, patience=1"
    state = run("toy.toml", ["train.epochs=5", callbacks(impatient)], catalogue=known, quiet=True)
    assert state.step == 12
    again = resume("runs/toy", catalogue=known, quiet=True, require="exact")
    assert (again.step, again.stop_reason) == (12, state.stop_reason)


STAGES = """
[[stages]]
name = "warm"
train = { epochs = 1 }
losses = [{ type = "kd_ce" }]

[[stages]]
name = "last"
train = { epochs = 2 }
losses = [{ type = "kd_ce" }]
"""


def test_a_stage_that_died_before_its_first_checkpoint(toy, known):
    """What it wrote is written once more, and is there once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    text = (toy / "toy.toml").read_text()
    (toy / "toy.toml").write_text(text[: text.index("[[losses]]")] + STAGES)
    end = "type='strike', at=[9], once=true, signal='SIGINT', twice=true"
    tables = callbacks("type='tensorboard'", "type='checkpoint', every=100", end)
    with pytest.raises(KeyboardInterrupt):
        run("toy.toml", ["train.log_every=1", tables], catalogue=known, quiet=True)
    assert not [*(toy / "runs/toy/last").glob("checkpoints/step-*")]
    resume("runs/toy", catalogue=known, quiet=True)
    events = EventAccumulator(str(toy / "runs/toy/last/tb"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [*range(1, 13)]
    assert [row["step"] for row in rows(toy / "runs/toy/last") if "loss" in row] == [*range(1, 13)]
