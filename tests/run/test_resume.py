"""A run that was stopped and goes on is the run that was not: bit for bit, row for row."""

import json
import shutil

import pytest

from hookbrew.errors import PreemptedError, ResumeError
from hookbrew.run import resume, run
from tests.run.compare import end, require_equal


@pytest.mark.parametrize("step", range(1, 12))
def test_at_every_step(train, step):
    """12 steps, two epochs of six."""
    require_equal(end(train("struck", [step])), end(train("whole")))


@pytest.mark.parametrize(
    "sets",
    [
        ["train.precision=bf16"],
        ["train.precision=fp16"],
        ["train.accumulate=4", "train.epochs=3"],  # the second step of each epoch has two batches
        ["data.workers=2"],
        ["train.nonfinite=skip", "train.clip_grad_norm=0.5"],
        ["augments=[{type='masking', p=0.3, mask_token=19}]"],
        ["optimizer.type=SGD", "optimizer.momentum=0.9"],
        ["losses=[{type='crd', student='head', teacher='head', samples=24, dimension=4}]"],
        ["data.shuffle=false", "train.evaluate_every=3"],
    ],
    ids=lambda sets: sets[0],
)
def test_under_other_settings(train, sets):
    """Several times, twice in one epoch."""
    at = [1, 3, 4] if any("accumulate" in each for each in sets) else [2, 3, 9]
    require_equal(end(train("struck", at, *sets)), end(train("whole", (), *sets)))


def test_workers_may_differ(train):
    """Samples draw by numbers of their own, in whichever process."""
    require_equal(end(train("two", [4], "data.workers=2")), end(train("none", (), "data.workers=0")))


SETS = ["student.factory=toyland:Dropping", "train.log_every=2"]
STAGES = """
[[stages]]
name = "warm"
train = { epochs = 1 }
losses = [{ type = "hidden_mse", student = "layers[1]", teacher = "layers[1]", projection = "linear" }]

[[stages]]
name = "last"
train = { steps = 5 }
optimizer = { type = "SGD", lr = 0.1, momentum = 0.9 }
losses = [{ type = "kd_ce" }]
"""


def test_in_each_of_two_stages(folder, known, train):
    text = (folder / "toy.toml").read_text()
    (folder / "toy.toml").write_text(text[: text.index("[[losses]]")] + STAGES)
    whole, struck = train("whole"), train("struck", [3, 3])  # in both stages
    for stage in ("warm", "last"):
        require_equal(end(struck / stage), end(whole / stage))


def test_between_two_stages(folder, known, train):
    """The first is done, and the second has no checkpoint yet."""
    text = (folder / "toy.toml").read_text()
    (folder / "toy.toml").write_text(text[: text.index("[[losses]]")] + STAGES)
    whole, cut = train("whole"), train("cut")
    shutil.rmtree(cut / "last/checkpoints")
    resume(cut, catalogue=known, quiet=True)
    for stage in ("warm", "last"):
        require_equal(end(cut / stage), end(whole / stage))


TASKS = """
[tasks.one]
teacher = { factory = "toyland:Net", width = 12 }
losses = [{ type = "kd_ce" }]

[tasks.one.data]
train = { factory = "toyland:noisy" }
batch_size = 4
pad = { input_ids = 0, attention_mask = 0 }

[tasks.two]
losses = [{ type = "ce" }]

[tasks.two.data]
train = { factory = "toyland:samples", number = 10, seed = 5 }
batch_size = 4
pad = { input_ids = 0, attention_mask = 0 }
"""


def test_with_several_tasks(folder, train):
    text = (folder / "toy.toml").read_text()
    head, rest = text.split("[teacher]")
    student, optimizer = (rest[rest.index(a) : rest.index(b)] for a, b in (("[student]", "[data]"), ("[opt", "[[lo")))
    (folder / "toy.toml").write_text(f"{head}{student}[train]\nepochs = 2\n\n{optimizer}{TASKS}")
    require_equal(end(train("struck", [2, 7], base=SETS)), end(train("whole", base=SETS)))


def test_it_is_said_from_where_and_how(train, folder, known):
    said = []
    with pytest.raises(PreemptedError, match="SIGTERM came; stopped after step 4 of 12") as caught:
        run("toy.toml", [*SETS, "callbacks=[{type='strike', at=[4]}]"], catalogue=known, quiet=True)
    assert caught.value.__notes__ == [f"go on with: hookbrew resume {folder}/runs/toy"]
    status = json.loads((folder / "runs/toy/status.json").read_text())
    assert (status["status"], status["step"]) == ("preempted", 4)
    resume("runs/toy", catalogue=known, quiet=True, say=said.append)
    (told,) = said
    assert told.startswith("resume: step 4 of 12, epoch 1, 4 batches into it\nexact: all ")
    assert json.loads((folder / "runs/toy/status.json").read_text())["resumed"] == "step 4, exact"


@pytest.mark.parametrize(
    ("change", "level", "told"),
    [
        ("optimizer.lr=0.5", "data", "optimizer.lr: 0.01 before, 0.5 now"),
        ("train.precision=fp16", "data", "train.precision: 'auto' before, 'fp16' now"),
        ("train.clip_grad_norm=1.0", "data", "train.clip_grad_norm: not there before, 1.0 now"),
        ("losses[0].temperature=3.0", "data", "losses[0].temperature: 2.0 before, 3.0 now"),
        ("seed=4", "weights", "seed: 3 before, 4 now"),
        ("data.train.seed=9", "weights", "first batch: "),
        ("data.workers=1", "exact", ""),
        ("train.log_every=1", "exact", ""),
        ("callbacks=[]", "exact", ""),
    ],
)
def test_levels(toy, known, change, level, told):
    run("toy.toml", ["train.epochs=1"], catalogue=known, quiet=True)
    said = []
    resume("runs/toy", [change], catalogue=known, quiet=True, say=said.append, require=level)
    assert f"\n{level}: " in said[0]
    assert told in said[0]
    better = {"data": "exact", "weights": "data"}.get(level)
    if better:
        shutil.rmtree("runs")
        run("toy.toml", ["train.epochs=1"], catalogue=known, quiet=True)
        before = {path: path.read_bytes() for path in (toy / "runs").rglob("*") if path.is_file()}
        with pytest.raises(ResumeError, match=f"--require {better} was given"):
            resume("runs/toy", [change], catalogue=known, quiet=True, require=better)
        assert {path: path.read_bytes() for path in (toy / "runs").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("change", ["data.batch_size=3", "train.accumulate=2", "data.train.number=20"])
def test_steps_of_another_size_are_refused(toy, known, change):
    run("toy.toml", ["train.epochs=1"], catalogue=known, quiet=True)
    with pytest.raises(ResumeError, match="the place in the data is counted in steps: resume with what it was"):
        resume("runs/toy", [change], catalogue=known, quiet=True)


def test_a_run_that_is_done_gets_more_to_do(toy, known, hookbrew):
    run("toy.toml", ["train.epochs=1"], catalogue=known, quiet=True)
    done = hookbrew("resume", "runs/toy", "-s", "train.epochs=3")
    assert done.exit_code == 0, done.output
    assert "resume: step 6 of 18, epoch 1, 0 batches into it\ndata: " in done.stderr
    assert "\n  train.epochs: 1 before, 3 now\n" in done.stderr
    assert done.stdout.startswith("done: 18 steps ")
    assert (toy / "runs/toy/config.toml").read_bytes() == (toy / "toy.toml").read_bytes()
    assert "epochs = 3" in (toy / "runs/toy/resolved.toml").read_text()


def test_what_cannot_be_resumed(toy, known, hookbrew):
    run("toy.toml", ["train.epochs=1"], catalogue=known, quiet=True)
    near = hookbrew("resume", "runs/tyo")
    assert (near.exit_code, near.stderr) == (2, f"error: there is no run {toy}/runs/tyo; did you mean 'toy'?\n")
    other = hookbrew("resume", "runs")
    assert (other.exit_code, other.stderr) == (2, f"error: {toy}/runs is no folder of a run: it has no resolved.toml\n")
    shutil.rmtree("runs/toy/checkpoints")
    none = hookbrew("resume", "runs/toy")
    assert none.exit_code == 2
    assert f"error: {toy}/runs/toy has no checkpoint yet; begin anew: hookbrew run " in none.stderr


def test_a_run_that_moved(toy, known):
    run("toy.toml", ["train.epochs=1"], catalogue=known, quiet=True)
    (toy / "runs/toy").rename(toy / "runs/elsewhere")
    state = resume("runs/elsewhere", ["train.epochs=2"], catalogue=known, quiet=True)
    assert state.folder == toy / "runs/elsewhere"
    assert not (toy / "runs/toy").exists()


def test_tensorboard_has_each_step_once(toy, known):
    """An interrupted run wrote steps that are made again."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    callbacks = "callbacks=[{type='tensorboard'}, {type='fall', at=5}, {type='checkpoint', every=2}]"
    with pytest.raises(RuntimeError, match="here"):
        run("toy.toml", ["train.log_every=1", callbacks], catalogue=known, quiet=True)
    resume("runs/toy", ["callbacks=[{type='tensorboard'}]"], catalogue=known, quiet=True)
    events = EventAccumulator(str(toy / "runs/toy/tb"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [*range(1, 13)]
    steps = [
        row["step"]
        for row in map(json.loads, (toy / "runs/toy/metrics.jsonl").read_text().splitlines())
        if "loss" in row
    ]
    assert steps == [*range(1, 13)]


def test_the_same_command_again(toy, known, hookbrew):
    """As a cluster gives it: it begins, goes on, and is done."""
    command = ["run", "toy.toml", "--resume", "-s", "train.epochs=1"]
    first = hookbrew(*command)
    assert first.exit_code == 0, first.output
    assert "resume:" not in first.stderr
    again = hookbrew(*command)
    assert again.exit_code == 0, again.output
    assert "resume: step 6 of 6, epoch 1, 0 batches into it\nexact: all " in again.stderr
    shutil.rmtree("runs/toy/checkpoints")  # as if it had been killed before the first
    anew = hookbrew(*command)
    assert anew.exit_code == 0, anew.output
    assert "resume:" not in anew.stderr
    assert hookbrew(*command, "--overwrite").exit_code == 2


def test_a_run_that_stopped_early_may_be_given_patience(toy, known):
    early = "callbacks=[{type='early_stop', patience=%d, min_delta=1.0}]"
    first = run("toy.toml", ["train.epochs=6", early % 1], catalogue=known, quiet=True)
    assert first.step == 12
    assert first.stop_reason
    same = resume("runs/toy", catalogue=known, quiet=True, require="exact")
    assert same.step == 12
    more = resume("runs/toy", [early % 3], catalogue=known, quiet=True)
    assert more.step == 24


def test_memory_decides_otherwise(toy, known, monkeypatch):
    """What `train.chunked = "auto"` chose is no setting, and changes the last bits."""
    with pytest.raises(PreemptedError):
        run("toy.toml", ["callbacks=[{type='strike', at=[4]}]"], catalogue=known, quiet=True)
    monkeypatch.setattr("hookbrew.objective.plan.LARGE", 0)
    said = []
    resume("runs/toy", catalogue=known, quiet=True, say=said.append)
    assert "\n  in chunks: False before, True now" in said[0]
