"""Several tasks of one student, by the command line: a run, its files, and mistakes at their places."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file

MODULE = '''
import torch
from torch import nn


class Net(nn.Module):
    """Embeds tokens, (B, L); a head for each task, which the batch names."""

    def __init__(self, width=8, classes=3):
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.layer = nn.Linear(width, width)
        self.heads = nn.ModuleDict({"topic": nn.Linear(width, classes), "mood": nn.Linear(width, 2)})

    def forward(self, input_ids, task):
        hidden = torch.tanh(self.layer(self.embed(input_ids).mean(1)))
        return {"logits": self.heads[task](hidden)}


class Wise(nn.Module):
    def __init__(self, width=12, classes=3):
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids):
        return self.head(self.embed(input_ids).mean(1))


def samples(number=24, seed=0, classes=3, extra=None):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(1, 20, (number, 4), generator=generator)
    more = {} if extra is None else {extra: 1}
    return [{"input_ids": row, "labels": int(row[0]) % classes, **more} for row in rows]


def broken():
    return {}["missing"]
'''

CONFIG = """\
output = "runs/toy"
pythonpath = ["."]
seed = 3

[student]
factory = "taskland:Net"

[tasks.topic.teacher]
factory = "taskland:Wise"

[tasks.topic.data]
train = { factory = "taskland:samples", number = 40 }
evaluate = { factory = "taskland:samples", number = 9, seed = 1 }
batch_size = 4

[[tasks.topic.losses]]
type = "kd_ce"
temperature = 2

[tasks.mood.teachers.big]
factory = "taskland:Wise"
classes = 2

[tasks.mood.teachers.small]
factory = "taskland:Wise"
width = 4
classes = 2

[tasks.mood.merge]
weights = { big = 2 }

[tasks.mood.data]
train = { factory = "taskland:samples", number = 12, classes = 2 }
evaluate = { factory = "taskland:samples", number = 5, seed = 2, classes = 2 }
batch_size = 4

[[tasks.mood.losses]]
type = "kd_ce"
weight = 0.5

[[tasks.mood.losses]]
type = "ce"

[train]
epochs = 2
tau = 0.5
log_every = 3

[optimizer]
lr = 1e-2
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The folder, as the working directory, with toy.toml."""
    (tmp_path / "taskland.py").write_text(MODULE)
    (tmp_path / "toy.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("taskland", None)


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    return load_file(folder / "final/student.safetensors")


def test_a_run(toy, hookbrew):
    done = hookbrew("run", "toy.toml")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("done: 26 steps  topic/accuracy ")  # ceil(40/4) + ceil(12/4) batches an epoch
    (one,) = [row for row in rows(toy / "runs/toy") if row["step"] == 1 and "loss" in row]
    assert one["weight/mood/kd_ce"] == 0.5
    topic, mood = {"loss/topic/kd_ce"}, {"loss/mood/kd_ce", "loss/mood/ce"}
    assert {name for name in one if name.startswith("loss/")} in (topic, mood)  # of the one task that was drawn
    assert set().union(*rows(toy / "runs/toy")) > topic | mood
    assert rows(toy / "runs/toy")[-1].keys() == {"step", "epoch", "eval/topic/accuracy", "eval/mood/accuracy"}


def test_the_accuracy_of_each_task_is_that_of_its_own_head(toy, hookbrew):
    hookbrew("run", "toy.toml")
    sys.path.insert(0, str(toy))
    try:
        from taskland import Net, samples
    finally:
        sys.path.remove(str(toy))
    student = Net()
    student.load_state_dict(weights(toy / "runs/toy"))
    metrics = json.loads((toy / "runs/toy/status.json").read_text())["metrics"]
    for task, data in (("topic", samples(9, 1)), ("mood", samples(5, 2, 2))):
        ids = torch.stack([sample["input_ids"] for sample in data])
        right = student(ids, task)["logits"].argmax(-1) == torch.tensor([sample["labels"] for sample in data])
        assert metrics[f"{task}/accuracy"] == pytest.approx(right.float().mean().item())


def test_the_resolved_file_reproduces_the_run(toy, hookbrew):
    assert hookbrew("run", "toy.toml").exit_code == 0
    again = hookbrew("run", "runs/toy/resolved.toml", "-s", "output=runs/again")
    assert again.exit_code == 0, again.output
    first, second = weights(toy / "runs/toy"), weights(toy / "runs/again")
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert [row.get("loss") for row in rows(toy / "runs/toy")] == [row.get("loss") for row in rows(toy / "runs/again")]
    shown = hookbrew("config", "show", "runs/toy/resolved.toml").stdout
    assert shown == (toy / "runs/toy/resolved.toml").read_text()


def test_check(toy, hookbrew):
    done = hookbrew("check", "toy.toml")
    assert done.exit_code == 0, done.output
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert any(line.endswith("losses kd_ce, kd_ce, ce; output " + str(toy / "runs/toy")) for line in lines), lines
    for line in (
        "build    ok  topic: student Net, 277 parameters; gets input_ids, task",
        "mood: teacher small Wise, 90 parameters; gets input_ids",
        "mood/kd_ce: student logits ~ big logits ~ small logits, a mean over samples",
        "26 steps",
    ):
        assert line in lines, done.stdout
    found = [line.removeprefix("step     ok  ").partition(" ")[0] for line in lines if "gradient norm" in line]
    assert found == ["topic/kd_ce", "mood/kd_ce", "mood/ce"]
    assert not any("get no gradient" in line for line in lines)
    assert not (toy / "runs").exists()


def test_settings_reach_into_a_task(toy, hookbrew):
    sets = ["-s", "tasks.mood.data.batch_size=2", "-s", "tasks.mood.losses[1].weight=3", "-s", "train.epochs=1"]
    done = hookbrew("run", "toy.toml", *sets)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("done: 16 steps")  # 10 + 6
    assert rows(toy / "runs/toy")[0]["weight/mood/ce"] == 3
    shown = hookbrew("config", "show", "toy.toml", "--origin", *sets).stdout
    lines = [line.split(maxsplit=1) for line in shown.splitlines()]
    assert ["toy.toml:9", 'tasks.topic.teacher.factory = "taskland:Wise"'] in lines
    assert any(line.startswith("-s tasks.mood.data.batch_size=2") for line in shown.splitlines())
    assert ["default", 'tasks.topic.data.labels = "labels"'] in lines


def test_models_of_tasks_can_be_looked_at(toy, hookbrew):
    small = hookbrew("taps", "toy.toml", "--model", "mood.small")
    assert small.exit_code == 0, small.output
    assert "(4, 4, 4)" in small.stdout  # batch, tokens, its width
    student = hookbrew("taps", "toy.toml")
    assert student.exit_code == 0, student.output
    assert "heads.topic" in student.stdout
    wrong = hookbrew("taps", "toy.toml", "--model", "mood.smal")
    assert wrong.exit_code == 2
    assert "error: toy.toml:1:1: mood.smal: there is no [mood.smal] table in this file; did you mean 'mood.small'?" in (
        wrong.stderr
    )
    counted = hookbrew("params", "toy.toml", "--depth", "0").stdout
    names = [line for line in counted.splitlines() if line in ("student", "topic.teacher", "mood.big", "mood.small")]
    assert names == ["student", "topic.teacher", "mood.big", "mood.small"]
    assert len(json.loads(hookbrew("params", "toy.toml", "--json").stdout)) == 4


MISTAKES = {
    "a typo in a task": (
        "[tasks.mood.data]\ntrain",
        "[tasks.mood.data]\ntrian",
        "toy.toml:33:1: tasks.mood.data.trian: unknown key; did you mean 'train'? (it is required)",
    ),
    "a table of a task": (
        "[tasks.mood.data]",
        "[tasks.mood.dta]",
        "toy.toml:32:1: tasks.mood.dta: unknown key; did you mean 'data'? (it is required)",
    ),
    "an option of a loss": (
        "temperature = 2",
        "temprature = 2",
        "toy.toml:18:1: tasks.topic.losses[0].temprature: unknown key; did you mean 'temperature'?",
    ),
    "a type of a loss": (
        'type = "ce"',
        'type = "cee"',
        "toy.toml:42:1: tasks.mood.losses[1].type: no loss called 'cee'; did you mean 'ce'?",
    ),
    "a factory": (
        'factory = "taskland:Wise"\nwidth = 4',
        'factory = "taskland:Wize"\nwidth = 4',
        "toy.toml:25:1: tasks.mood.teachers.small.factory: taskland has no 'Wize'; did you mean 'Wise'?",
    ),
    "a misspelt factory": (
        'factory = "taskland:Wise"\nwidth = 4',
        'factroy = "taskland:Wise"\nwidth = 4',
        "toy.toml:25:1: tasks.mood.teachers.small.factroy: unknown key; did you mean 'factory'? (it is required)",
    ),
    "a weight of no teacher": (
        "weights = { big = 2 }",
        "weights = { bigg = 2 }",
        "toy.toml:30:13: tasks.mood.merge.weights.bigg: there is no such teacher; did you mean 'big'?",
    ),
    "data beside tasks": (
        "[train]",
        '[data]\ntrain = { factory = "taskland:samples" }\n\n[train]',
        "toy.toml:44:1: data: there are tasks, and each has its own; write it into [tasks.NAME]",
    ),
    "a key of the batch that is taken": (
        "number = 12, classes = 2",
        'number = 12, classes = 2, extra = "task"',
        "the data of task 'mood' has a key 'task', which says of what task a batch is; rename it",
    ),
    "a negative tau": ("tau = 0.5", "tau = -1", "toy.toml:46:1: train.tau: must be >= 0.0: -1.0"),
    "another name for tasks": (
        CONFIG[CONFIG.index("[tasks.topic.teacher") : CONFIG.index("[train]")],
        CONFIG[CONFIG.index("[tasks.topic.teacher") : CONFIG.index("[train]")].replace("tasks.", "task."),
        "toy.toml:8:1: task: unknown key; did you mean 'tasks'?",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake(toy, hookbrew, case):
    old, new, expected = MISTAKES[case]
    assert CONFIG.count(old) == 1
    (toy / "toy.toml").write_text(CONFIG.replace(old, new))
    done = hookbrew("run", "toy.toml")
    assert done.exit_code == 2, done.output
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [f"error: {expected}"]
    assert not (toy / "runs").exists()


def test_a_key_task_is_the_users_own_where_there_are_no_tasks(toy, hookbrew):
    data = 'train = { factory = "taskland:samples", extra = "task" }\nevaluate = { factory = "taskland:samples", '
    head = 'output = "runs/one"\npythonpath = ["."]\nstudent.factory = "taskland:Wise"\ntrain.epochs = 1\n'
    (toy / "one.toml").write_text(f'{head}[data]\n{data}number = 40, extra = "task" }}\n[[losses]]\ntype = "ce"\n')
    done = hookbrew("run", "one.toml")
    assert done.exit_code == 0, done.output
    assert rows(toy / "runs/one")[-1].keys() == {"step", "epoch", "eval/accuracy"}


def test_paths_in_a_task_are_relative_to_their_file(toy, hookbrew):
    (toy / "base").mkdir()
    (toy / "base/base.toml").write_text(CONFIG.replace("number = 40", 'number = 40, extra = "./x"'))
    (toy / "child.toml").write_text('extends = "base/base.toml"\ntasks.mood.teachers.big.width = 5\n')
    text = hookbrew("config", "show", "child.toml").stdout
    assert f'extra = "{toy}/base/x"' in text
    assert "width = 5" in text
    assert (
        hookbrew("config", "show", "child.toml", "-s", "tasks.mood.teachers.big.at=./y").stdout.count(f"{toy}/y") == 1
    )
