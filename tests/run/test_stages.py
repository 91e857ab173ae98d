"""Several trainings of one student, by the command line: what each begins with, leaves on disk, and how they end."""

import json
import os
import re
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file

STAGES = """
[[stages]]
name = "warm"
train = { epochs = 1 }

[[stages.losses]]
type = "hidden_mse"
student = "layers[1]"
teacher = "layers[1]"
projection = "linear"

[[stages]]
train = { steps = 5 }
optimizer = { type = "SGD", lr = 0.1, momentum = 0.9 }

[[stages.losses]]
type = "kd_ce"
"""


@pytest.fixture
def staged(toy):
    """toy.toml with two stages; the folder."""
    text = (toy / "toy.toml").read_text()
    (toy / "toy.toml").write_text(text[: text.index("[[losses]]")] + STAGES)
    return toy


def status(folder):
    return json.loads((folder / "status.json").read_text())


def student(folder):
    return load_file(folder / "final/student.safetensors")


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run(staged, hookbrew):
    done = hookbrew("run", "toy.toml")
    assert done.exit_code == 0, done.output
    run = staged / "runs/toy"
    assert sorted(p.name for p in run.iterdir()) == [
        *(".lock", "config.toml", "env.json", "resolved.toml", "stage-2", "status.json", "warm"),
    ]
    for name, steps in (("warm", 6), ("stage-2", 5)):
        assert sorted(p.name for p in (run / name).iterdir()) == [
            "checkpoints",
            "final",
            "metrics.jsonl",
            "status.json",
        ]
        assert (status(run / name)["status"], status(run / name)["step"]) == ("done", steps)
        assert rows(run / name)[0]["step"] == 1
    assert {key: status(run)[key] for key in ("status", "stage", "step")} == {
        "status": "done",
        "stage": "stage-2",
        "step": 5,
    }
    told = [line for line in done.stderr.splitlines() if line.startswith("stage ")]
    assert told == ["stage warm (1 of 2): 6 steps", "stage stage-2 (2 of 2): 5 steps"]
    assert re.fullmatch(rf"done: 5 steps  accuracy \d\.\d{{4}}  {run}/stage-2\n", done.stdout)
    assert "loss/hidden_mse" in rows(run / "warm")[0]
    assert "loss/kd_ce" in rows(run / "stage-2")[0]


def test_quiet(staged, hookbrew):
    assert hookbrew("run", "toy.toml", "--quiet").stderr == ""


def test_a_stage_goes_on_where_the_one_before_ended(staged, hookbrew):
    """Its optimizer and learning rate are fresh: it is a run of its own that begins with those weights."""
    hookbrew("run", "toy.toml", "-s", "callbacks=[]")
    loaded = (
        "\n\nclass Loaded(Net):\n"
        "    def __init__(self, path):\n"
        "        super().__init__()\n"
        "        from safetensors.torch import load_model\n"
        "        load_model(self, path)\n"
    )
    (staged / "toyland.py").write_text((staged / "toyland.py").read_text() + loaded)
    sys.modules.pop("toyland")
    text = (staged / "toy.toml").read_text().replace('[student]\nfactory = "toyland:Net"', "[student]")
    head, _, rest = text.partition("[[stages]]")
    last = '[[stages]]\nname = "stage-2"\n' + rest.partition("[[stages]]")[2]
    head = head.replace(
        "[student]", '[student]\nfactory = "toyland:Loaded"\npath = "./runs/toy/warm/final/student.safetensors"'
    )
    (staged / "alone.toml").write_text(head.replace("runs/toy", "runs/alone", 1) + last)
    alone = hookbrew("run", "alone.toml")
    assert alone.exit_code == 0, alone.output
    first, second = student(staged / "runs/toy/stage-2"), student(staged / "runs/alone/stage-2")
    assert all(torch.equal(first[key], second[key]) for key in first)
    timeless = [
        [{k: v for k, v in row.items() if k != "samples_per_second"} for row in rows(staged / f"runs/{name}/stage-2")]
        for name in ("toy", "alone")
    ]
    assert timeless[0] == timeless[1]
    before = student(staged / "runs/toy/warm")
    assert not all(torch.equal(first[key], before[key]) for key in first)


def test_the_resolved_file_reproduces_the_run(staged, hookbrew):
    sets = ["-s", "stages[0].train.epochs=2", "-s", "stages[1].train.steps=3", "-s", "stages[0].seed=9"]
    assert hookbrew("run", "toy.toml", *sets).exit_code == 0
    again = hookbrew("run", "runs/toy/resolved.toml", "-s", "output=runs/again")
    assert again.exit_code == 0, again.output
    for stage in ("warm", "stage-2"):
        first, second = student(staged / f"runs/toy/{stage}"), student(staged / f"runs/again/{stage}")
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert (status(staged / "runs/again/warm")["step"], status(staged / "runs/again/stage-2")["step"]) == (12, 3)
    shown = hookbrew("config", "show", "runs/toy/resolved.toml").stdout
    assert shown == (staged / "runs/toy/resolved.toml").read_text()


def test_the_random_state_is_as_before(staged, pack):
    from hookbrew.run import run

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    run("toy.toml", ["callbacks=[]"], catalogue=pack, quiet=True)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_one_teacher_serves_stages_that_say_the_same(staged, pack):
    from hookbrew.config import read
    from hookbrew.plan import planned
    from hookbrew.run import built

    for sets, number in (((), 1), (("stages[1].teacher.width=10",), 2), (("stages[1].seed=4",), 2)):
        plan = planned(read("toy.toml", ["callbacks=[]", *sets]), pack, quiet=True)
        with built(plan, pack) as made:
            teachers = [prepared.distillation.teacher for prepared in made]
            assert len(set(map(id, teachers))) == number
            assert len({id(prepared.distillation.student) for prepared in made}) == 1
        hooks = [h for t in teachers for m in t.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
        assert hooks == []


def test_what_an_optimizer_remembers_is_let_go_after_its_stage(staged, hookbrew):
    """The moments of AdamW are twice as large as the student."""
    watched = (
        "\n\nimport weakref\n\nALIVE, SEEN = weakref.WeakSet(), []\n\n"
        "class Watched(torch.optim.SGD):\n"
        "    def __init__(self, params, **options):\n"
        "        super().__init__(params, **options)\n"
        "        ALIVE.add(self)\n\n"
        "    def step(self, closure=None):\n"
        "        SEEN.append(sum(bool(each.state) for each in ALIVE))\n"
        "        return super().step(closure)\n"
    )
    (staged / "toyland.py").write_text((staged / "toyland.py").read_text() + watched)
    watched = '{type = "toyland:Watched", momentum = 0.9}'
    sets = ["-s", f"stages[1].optimizer={watched}", "-s", f"optimizer={watched}"]
    done = hookbrew("run", "toy.toml", *sets, "-s", "callbacks=[]")
    assert done.exit_code == 0, done.output
    seen = sys.modules["toyland"].SEEN
    assert seen == [0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("stages[1].train.steps=0", "error: -s stages[1].train.steps=0: train.steps: must be >= 1: 0"),
        ("stages[1].losses[0].student=haed", "losses[0].student: selector 'haed' matches no module of Net"),
        ("stages[1].optimizer.momentum=-1", "optimizer: SGD: Invalid momentum value: -1"),
        ("stages[1].teacher.width=true", None),
        ("stages[1].train.device=meta", "train.device: all stages are on one device, and the first has 'auto'"),
    ],
)
def test_no_stage_is_trained_before_all_are_checked(staged, hookbrew, command, setting, problem):
    done = hookbrew(command, "toy.toml", "-s", setting)
    if problem is None:  # code of the user that raises
        assert done.exit_code == 1, done.output
    else:
        assert done.exit_code == 2, done.output
        assert problem in done.stderr
        assert "note: raised in stage 'stage-2'\n" in done.stderr
    assert not (staged / "runs").exists()


def test_check_tells_each_stage(staged, hookbrew):
    done = hookbrew("check", "toy.toml")
    assert done.exit_code == 0, done.output
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert lines[1:3] == ["options  ok  warm: losses hidden_mse", f"stage-2: losses kd_ce; output {staged}/runs/toy"]
    assert [line for line in lines if line.startswith(("build", "step")) or line.endswith(" steps")] == [
        *("build    ok  stage warm", "6 steps", "build    ok  stage stage-2", "5 steps"),
        *("step     ok  stage warm", "step     ok  stage stage-2"),
    ]
    assert not (staged / "runs").exists()


def test_overwriting(staged, hookbrew):
    hookbrew("run", "toy.toml")
    (staged / "runs/toy/warm/mine.txt").write_text("x")
    refused = hookbrew("run", "toy.toml")
    assert refused.exit_code == 2
    assert f"error: output {staged}/runs/toy exists already; give another" in refused.stderr
    assert hookbrew("run", "toy.toml", "--overwrite", "-s", "stages[1].name=b").exit_code == 0
    assert not (staged / "runs/toy/warm/mine.txt").exists()
    assert not (staged / "runs/toy/stage-2").exists()


SPOILT = """

class Spoilt(Net):
    def forward(self, input_ids, attention_mask=None):
        logits = super().forward(input_ids, attention_mask)
        self.calls = getattr(self, "calls", 0) + self.training
        return logits * (float("nan") if self.calls == 9 else 1.0)
"""


def test_a_second_stage_that_fails(staged, hookbrew):
    (staged / "toyland.py").write_text((staged / "toyland.py").read_text() + SPOILT)
    done = hookbrew("run", "toy.toml", "-s", "student.factory=toyland:Spoilt")
    assert done.exit_code == 76, done.output
    assert "error: step 3: a loss or gradient is not finite" in done.stderr
    assert "note: raised in stage 'stage-2'\n" in done.stderr
    run = staged / "runs/toy"
    assert [status(folder)["status"] for folder in (run, run / "warm", run / "stage-2")] == ["failed", "done", "failed"]
    assert status(run)["stage"] == "stage-2"
    assert student(run / "warm")
    assert not (run / "stage-2/final").exists()


def test_between_two_stages_a_run_is_not_done(staged, hookbrew, monkeypatch):
    """A folder that cannot be made for the second is no reason to call the whole run done."""
    from hookbrew import folder
    from hookbrew.errors import FolderError

    def full(path, *, overwrite):
        if path.name == "stage-2":
            assert status(staged / "runs/toy")["status"] == "running"
            raise FolderError("no space")
        create(path, overwrite=overwrite)

    create = folder.create
    monkeypatch.setattr(folder, "create", full)
    assert hookbrew("run", "toy.toml").exit_code == 2
    assert status(staged / "runs/toy")["status"] == "failed"
    assert status(staged / "runs/toy/warm")["status"] == "done"


def test_ctrl_c_in_the_second_stage(staged, started):
    process = started("-s", "stages[1].train.steps=1000000", rows="stage-2/metrics.jsonl")
    run = staged / "runs/toy"
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "Traceback" not in err
    found = [status(folder)["status"] for folder in (run, run / "warm", run / "stage-2")]
    assert found == ["preempted", "done", "preempted"]
    assert student(run / "warm")
    assert not (run / "stage-2/final").exists()
