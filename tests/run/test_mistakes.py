"""Every mistake gives one clear message with its place and its exit code, and leaves earlier runs untouched."""

import re

import pytest

CASES = {
    "an unknown key": (
        "epochs = 2",
        "epoch = 2",
        "error: toy.toml:19:1: train.epoch: unknown key; did you mean 'epochs'?",
    ),
    "a string for a number": (
        "epochs = 2",
        'epochs = "3"',
        "error: toy.toml:19:1: train.epochs: expected an integer, got the string '3'",
    ),
    "a fraction for an integer": (
        "epochs = 2",
        "epochs = 3.7",
        "error: toy.toml:19:1: train.epochs: expected an integer, got 3.7",
    ),
    "a value out of bounds": (
        "temperature = 2",
        "temperature = -2",
        "error: toy.toml:32:1: losses[0].temperature: must be > 0: -2.0",
    ),
    "an unknown option of a loss": (
        "temperature = 2",
        "temprature = 2",
        "error: toy.toml:32:1: losses[0].temprature: unknown key; did you mean 'temperature'?",
    ),
    "an unknown loss": (
        'type = "kd_ce"',
        'type = "kd_ec"',
        "error: toy.toml:31:1: losses[0].type: no loss called 'kd_ec'; did you mean 'kd_ce'?",
    ),
    "an unknown schedule": (
        'type = "linear_decay"',
        'type = "linear_decya"',
        "error: toy.toml:33:12: losses[0].weight.type: no schedule called 'linear_decya'; did you mean 'linear_decay'?",
    ),
    "both lengths": (
        "epochs = 2",
        "epochs = 2\nsteps = 9",
        "error: toy.toml:20:1: train.steps: give either epochs or steps, not both",
    ),
    "a wrong module path": (
        'student = "layers[*]"',
        'student = "layer[*]"',
        "error: toy.toml:37:1: losses[1].student: selector 'layer[*]' matches no module of Net. Stopped at the model: no child 'layer'; did you mean 'layers'?",
    ),
    "an index out of range": (
        'teacher = "layers[*]"',
        'teacher = "layers[2]"',
        "error: toy.toml:38:1: losses[1].teacher: selector 'layers[2]': index [2] out of range: 'layers' has 2 children (0..1)",
    ),
    "a wrong shape": (
        '\nprojection = "linear"',
        "",
        'error: toy.toml:35:1: losses[1]: student (4, 5, 8) and teacher (4, 5, 12) differ in width: add projection = "linear"',
    ),
    "other classes": (
        "width = 12",
        "width = 12\nclasses = 4",
        "error: toy.toml:31:1: losses[0]: student (4, 3) and teacher (4, 4) differ: they must have the same classes",
    ),
    "a missing label key": (
        'type = "kd_ce"\ntemperature = 2',
        'type = "ce"\nlabels = "label"',
        "error: toy.toml:30:1: losses[0]: loss 'ce' needs labels, and the batch has no key 'label'; did you mean 'labels'?",
    ),
    "no padding value": (
        "pad = { input_ids = 0, attention_mask = 0 }",
        "pad = { attention_mask = 0 }",
        "error: samples differ in length in 'input_ids' (3, 5); say what fills the short ones up: pad = { input_ids = 0 }",
    ),
    "an unknown optimizer": (
        'type = "AdamW"',
        'type = "AdmaW"',
        "error: toy.toml:22:1: optimizer: torch.optim has no 'AdmaW'; did you mean 'AdamW'?",
    ),
    "an unknown option of the optimizer": (
        "lr = 1e-2",
        "lr = 1e-2\nweight_decy = 0.1",
        "error: toy.toml:22:1: optimizer: AdamW takes no argument 'weight_decy'; did you mean 'weight_decay'?",
    ),
    "a refused value of the optimizer": (
        "lr = 1e-2",
        "lr = 1e-2\nweight_decay = -1.0",
        "error: toy.toml:22:1: optimizer: AdamW: Invalid weight_decay value: -1.0",
    ),
    "a factory's module": (
        '[student]\nfactory = "toyland:Net"',
        '[student]\nfactory = "toyland2:Net"',
        "error: toy.toml:10:1: student.factory: no module 'toyland2'; install it, or name the folder it is in with pythonpath = [\".\"]",
    ),
    "a factory's name": (
        '[student]\nfactory = "toyland:Net"',
        '[student]\nfactory = "toyland:Ner"',
        "error: toy.toml:10:1: student.factory: toyland has no 'Ner'; did you mean 'Net'?",
    ),
    "a factory's argument": (
        "width = 12",
        "wdth = 12",
        "error: toy.toml:6:1: teacher.factory: toyland:Net takes no argument 'wdth'; did you mean 'width'?",
    ),
    "no model": (
        '[student]\nfactory = "toyland:Net"',
        '[student]\nfactory = "toyland:samples"',
        "error: toy.toml:10:1: student.factory: toyland:samples gave a list; expected a torch module",
    ),
    "a device": (
        "epochs = 2",
        'epochs = 2\ndevice = "cuda:77"',
        "error: toy.toml:20:1: train.device: no device 'cuda:77' here: ",
    ),
    "a plugin that is not there": (
        "seed = 3",
        'seed = 3\nplugins = ["dkd>=0.3"]',
        "error: toy.toml:4:12: plugins[0]: no plugin called 'dkd' is installed; one of: standard",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("command", ["run", "check"])
def test_mistake(toy, hookbrew, edit, case, command):
    old, new, expected = CASES[case]
    before = sorted(toy.rglob("*"))
    edit(old, new)
    done = hookbrew(command, "toy.toml")
    assert done.exit_code == 2, done.output
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith(expected) if expected.endswith(": ") else errors[0] == expected
    assert "Traceback" not in done.output
    assert [p for p in sorted(toy.rglob("*")) if "__pycache__" not in p.parts] == before


def test_all_mistakes_of_a_level_come_at_once(toy, hookbrew, edit):
    edit("epochs = 2", "epoch = 2")
    edit("temperature = 2", "temprature = 2")
    edit("batch_size = 4", 'batch_size = "4"')
    done = hookbrew("check", "toy.toml")
    places = re.findall(r"^error: toy\.toml:(\d+):", done.stderr, re.MULTILINE)
    assert places == ["15", "19", "32"]


def test_nan_stops_a_run(toy, hookbrew, edit):
    spoilt = (
        "\n\nclass Spoilt(Net):\n"
        "    def forward(self, input_ids, attention_mask=None):\n"
        "        self.calls = getattr(self, 'calls', 0) + 1\n"
        "        scale = float('nan') if self.calls == 7 else 1.0\n"
        "        return super().forward(input_ids, attention_mask) * scale\n"
    )
    (toy / "toyland.py").write_text((toy / "toyland.py").read_text() + spoilt)
    edit('[student]\nfactory = "toyland:Net"', '[student]\nfactory = "toyland:Spoilt"')
    done = hookbrew("run", "toy.toml")
    assert done.exit_code == 76, done.output
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: step 5: a loss or gradient is not finite (loss/kd_ce nan")
    status = (toy / "runs/toy/status.json").read_text()
    assert '"status": "failed"' in status
    assert not (toy / "runs/toy/final").exists()


def test_user_code_shows_its_traceback_from_its_own_frame(toy, hookbrew, edit):
    edit('train = { factory = "toyland:samples" }', 'train = { factory = "toyland:broken" }')
    done = hookbrew("run", "toy.toml")
    assert done.exit_code == 1
    assert 'toyland.py", line' in done.stderr
    assert "raised by data.train.factory = 'toyland:broken'" in done.stderr
    assert "hookbrew/run.py" not in done.stderr


def test_a_syntax_error_in_user_code_is_told_without_our_frames(toy, hookbrew):
    (toy / "toyland.py").write_text("def samples(:\n")
    done = hookbrew("check", "toy.toml")
    assert done.exit_code == 1
    first, *_, last = done.stderr.splitlines()
    assert first == f'  File "{toy}/toyland.py", line 1'
    assert "SyntaxError: invalid syntax" in done.stderr
    assert last == "(without the frames of hookbrew; `hookbrew --traceback ...` shows all of them)"


def test_a_file_that_is_not_there(toy, hookbrew):
    done = hookbrew("run", "toi.toml")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("error: toi.toml: ")
    assert "toy.toml" in done.stderr


def errors(done):
    return [line for line in done.stderr.splitlines() if line.startswith(("error: ", "note: "))]


@pytest.mark.parametrize("command", ["run", "check"])
def test_keys_that_nothing_would_read(toy, hookbrew, edit, command):
    edit("evaluate = {", "collate = {")
    edit("epochs = 2", "epochs = 2\nevaluate_every = 5")
    edit("batch_size = 4", "batch_size = 4\nevaluate_batch_size = 8")
    more = '[[callbacks]]\ntype = "evaluate"\n[[callbacks]]\ntype = "checkpoint"\nkeep_best = 2'
    edit('[[callbacks]]\ntype = "tensorboard"', more)
    done = hookbrew(command, "toy.toml")
    assert done.exit_code == 2
    assert errors(done) == [
        "error: toy.toml:17:1: data.pad: data.collate makes the batches, and pads them itself; leave one of them out",
        "error: toy.toml:16:1: data.evaluate_batch_size: there is no data.evaluate",
        "error: toy.toml:21:1: train.evaluate_every: there is no data.evaluate",
        "error: toy.toml:43:1: callbacks[0]: there is no data.evaluate",
        "error: toy.toml:45:1: callbacks[1]: there is no data.evaluate",
    ]


def test_evaluation_data_without_labels(hookbrew, edit):
    edit("number = 9, seed = 1", "number = 9, labels = false")
    done = hookbrew("check", "toy.toml")
    assert done.exit_code == 2
    assert errors(done) == [
        "error: toy.toml:14:1: data.evaluate: callback 'evaluate' needs labels, and the batch has no key 'labels'; "
        "one of: attention_mask, input_ids"
    ]


def test_evaluation_data_that_does_not_fit(toy, hookbrew, edit):
    (toy / "toyland.py").write_text((toy / "toyland.py").read_text() + "\n\ndef other():\n    return [{'labels': 1}]\n")
    edit('evaluate = { factory = "toyland:samples", number = 9, seed = 1 }', 'evaluate = { factory = "toyland:other" }')
    done = hookbrew("run", "toy.toml")
    assert done.exit_code == 2
    assert errors(done) == [
        "error: the student gets 'input_ids', which the first batch had and this one lacks",
        "note: raised by the first batch of the evaluation data",
    ]
    assert not (toy / "runs").exists()


def test_the_real_step_of_check_is_as_precise_as_the_run(toy, hookbrew, edit):
    wary = (
        "\n\nclass Wary(Net):\n"
        "    def forward(self, input_ids, attention_mask=None):\n"
        "        out = super().forward(input_ids, attention_mask)\n"
        "        assert not self.training or out.dtype == torch.bfloat16\n"
        "        return out\n"
    )
    (toy / "toyland.py").write_text((toy / "toyland.py").read_text() + wary)
    edit('[student]\nfactory = "toyland:Net"', '[student]\nfactory = "toyland:Wary"')
    done = hookbrew("check", "toy.toml", "-s", "train.precision=bf16")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("where", ["", ".", "..", "../final", "/tmp/final"])
@pytest.mark.parametrize(
    ("type", "key"), [("weights", "folder"), ("checkpoint", "folder"), ("tensorboard", "folder"), ("metrics", "file")]
)
def test_callbacks_write_into_the_run_folder_only(hookbrew, edit, type, key, where):
    edit('[[callbacks]]\ntype = "tensorboard"', f'[[callbacks]]\ntype = "{type}"\n{key} = "{where}"')
    done = hookbrew("config", "show", "toy.toml")
    assert done.exit_code == 2
    assert errors(done) == [
        f"error: toy.toml:43:1: callbacks[0].{key}: must be a relative path, to something in the run folder: {where!r}"
    ]


def test_what_a_users_module_lacks_is_named_with_its_line(toy, hookbrew):
    (toy / "toyland.py").write_text("import torch\nimport not_installed_thing\n")
    done = hookbrew("check", "toy.toml")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[0] == (
        "error: toy.toml:13:11: data.train.factory: toyland:samples failed: "
        "ModuleNotFoundError: No module named 'not_installed_thing' (toyland.py:2)"
    )


@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (["shard='student'", "out_of_memory='halve'"], "train.out_of_memory: 'halve' is not for a sharded student"),
        (["shard='both'", "compile='teacher'"], "train.compile: a sharded teacher is not compiled"),
        (["shard='student'", "compile='both'"], "train.compile: a sharded student is not compiled"),
    ],
)
def test_what_cannot_be_done_to_shards(toy, hookbrew, command, sets, told):
    """Found by one process, before eight of them are started."""
    done = hookbrew(command, "toy.toml", *(part for each in sets for part in ("-s", f"train.{each}")))
    assert (done.exit_code, told in done.stderr) == (2, True), done.stderr


def test_a_parameter_that_cannot_be_shared_out(toy, hookbrew):
    more = "\n\nclass Scaled(Net):\n    def __init__(self):\n        super().__init__()\n"
    more += "        self.scale = nn.Parameter(torch.tensor(1.0))\n"
    (toy / "toyland.py").write_text((toy / "toyland.py").read_text() + more)
    given = ["check", "toy.toml", "-s", "student.factory=toyland:Scaled"]
    done = hookbrew(*given, "-s", "train.shard='student'")
    assert done.exit_code == 2
    assert "train.shard: scale of Scaled is a single number" in done.stderr
    assert hookbrew(*given).exit_code == 0


def test_a_restart_does_not_begin_anew(toy, hookbrew, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    done = hookbrew("run", "toy.toml", "--overwrite")
    assert (done.exit_code, "write --resume" in done.stderr) == (2, True)
    assert not (toy / "runs").exists()


def test_one_process_has_nothing_to_share_out(toy, hookbrew, caplog):
    done = hookbrew("run", "toy.toml", "-s", "train.shard='student'", "-s", "train.epochs=1", "--quiet")
    assert done.exit_code == 0
    assert "note: train.shard = 'student', and this process is alone: it has all of it" in caplog.messages
