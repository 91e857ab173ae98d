"""What the README says is run: its TOML, its commands, its Python, its plugin, its error messages."""

import configparser
import re
import shlex
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest
import tomli_w
import torch
from click.testing import CliRunner

from hookbrew.cache import Cache
from hookbrew.cli import main
from hookbrew.plugin import catalogue
from hookbrew.testing import check_loss

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def shown(mark):
    """The one block of Python with this in it."""
    (block,) = [block for block in blocks("python") if mark in block]
    return block


def lines(block):
    """The commands of a console block, without prompt and comment."""
    return [line[2:].split("  #")[0].strip() for line in block.splitlines() if line.startswith("$ ")]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The files that the README's configuration names: a teacher of 6 layers, and a data module."""
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("readme")
    size = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
    for name, depth in [("teacher", 6), ("student", 3)]:
        BertForSequenceClassification(BertConfig(num_hidden_layers=depth, **size)).save_pretrained(folder / name)
    (folder / "my_project").mkdir()
    (folder / "my_project/data.py").write_text(
        "import torch\n\n\n"
        "def train_set():\n"
        "    ids = [torch.arange(2, 4 + i % 5) for i in range(40)]\n"
        '    return [{"input_ids": x, "attention_mask": torch.ones_like(x), "labels": len(x) % 2} for x in ids]\n\n\n'
        "test_set = train_set\n"
    )
    (folder / "distill.toml").write_text(blocks("toml")[0])
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "my_project"]:
        del sys.modules[name]


def test_the_commands_of_a_clone_are_environments_of_tox():
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini")
    assert lines(blocks("console")[0]) == ["tox run -e quickstart", "tox run"]
    assert "testenv:quickstart" in tox
    assert "python examples/quickstart.py" in tox["testenv:quickstart"]["commands"]
    assert (ROOT / ".ci/run").read_text().strip().endswith("tox run")


@pytest.mark.parametrize(
    ("block", "left_out"), [(1, {"teacher", "losses"}), (2, {"teacher", "losses", "data"}), (3, {"losses"})]
)
def test_further_tables(project, monkeypatch, block, left_out):
    """Teachers, tasks, stages: in place of what the first file says about the same."""
    monkeypatch.chdir(project)
    base = {key: value for key, value in tomllib.loads(blocks("toml")[0]).items() if key not in left_out}
    if "teacher" in left_out:  # out of which the first file makes its student
        base["student"] = tomllib.loads(blocks("toml")[1])["teachers"]["small"]
    Path("further.toml").write_text(tomli_w.dumps(base | tomllib.loads(blocks("toml")[block])))
    done = CliRunner().invoke(main, ["check", "further.toml"], prog_name="hookbrew")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("command", lines(blocks("console")[1]) + lines(blocks("console")[4]))
def test_commands(project, monkeypatch, command):
    monkeypatch.chdir(project)
    program, *arguments = shlex.split(command)
    assert program == "hookbrew"
    done = CliRunner().invoke(main, arguments, prog_name="hookbrew")
    assert done.exit_code == 0, done.output


def test_a_run_goes_on(project, monkeypatch):
    monkeypatch.chdir(project)
    begin = ["run", "distill.toml", "-s", "train.epochs=1", "--overwrite", "--quiet"]
    for arguments in (begin, *(shlex.split(line)[1:] for line in lines(blocks("console")[2]))):
        done = CliRunner().invoke(main, arguments, prog_name="hookbrew")
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize("command", lines(next(b for b in blocks("console") if "hookbrew compare" in b)))
def test_models_are_compared(project, monkeypatch, command):
    monkeypatch.chdir(project)
    begin = ["run", "distill.toml", "-s", "train.epochs=1", "--overwrite", "--quiet"]
    done = None if Path("runs/sms/status.json").exists() else CliRunner().invoke(main, begin, prog_name="hookbrew")
    assert done is None or done.exit_code == 0, done.output
    done = CliRunner().invoke(main, [*shlex.split(command)[1:], "--rounds", "1"], prog_name="hookbrew")
    assert done.exit_code == 0, done.output
    assert "agreement with" in done.stdout


@pytest.mark.slow
def test_a_run_is_exported(project, monkeypatch):
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    monkeypatch.chdir(project)
    begin = ["run", "distill.toml", "-s", "train.epochs=1", "--overwrite", "--quiet"]
    (block,) = [block for block in blocks("console") if "hookbrew export" in block]
    for arguments in (begin, *(shlex.split(line)[1:] for line in lines(block))):
        done = CliRunner().invoke(main, arguments, prog_name="hookbrew")
        assert done.exit_code == 0, done.output


def torchruns():
    """The commands that start several processes, those of the script for Slurm included."""
    shown = blocks("console")[3].replace("$ ", "\n") + blocks("bash")[0]
    joined = shown.replace("\\\n", " ").splitlines()
    return [line[line.index("torchrun") :].split(" #")[0].strip(" &") for line in joined if "torchrun -" in line]


@pytest.mark.parametrize("command", torchruns())
def test_commands_of_several_processes(command):
    """As torchrun reads them, and then hookbrew."""
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(shlex.split(command.replace("$", ""))[1:])
    assert (parsed.module, parsed.training_script) == (True, "hookbrew")
    name, *arguments = parsed.training_script_args
    context = main.get_command(None, name).make_context(name, arguments)
    assert context.params["config"] == "distill.toml"


def test_the_script_for_slurm():
    done = subprocess.run(["bash", "-n"], input=blocks("bash")[0], text=True, capture_output=True, check=False)
    assert (done.returncode, len(torchruns())) == (0, 4), done.stderr


def test_the_messages_are_real(project, monkeypatch):
    monkeypatch.chdir(project)
    text = (project / "distill.toml").read_text()
    wrong = text.replace("clip_grad_norm = ", "clip_grad = ").replace("temperature = ", "temprature = ")
    (project / "wrong").mkdir()
    (project / "wrong/distill.toml").write_text(wrong)
    monkeypatch.chdir(project / "wrong")
    done = CliRunner().invoke(main, ["check", "distill.toml"], prog_name="hookbrew")
    assert done.exit_code == 2
    (shown,) = [block for block in blocks("text") if block.startswith("error: ")]
    assert done.stderr.strip() == shown.strip()


def encoder(width, depth):
    """A model with the paths of the Python example, and a call by keywords."""

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(9, width)
            self.encoder = torch.nn.Module()
            self.encoder.layer = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(depth))
            self.head = torch.nn.Linear(width, 3)

        def forward(self, input_ids):
            hidden = self.embed(input_ids)
            for layer in self.encoder.layer:
                hidden = torch.tanh(layer(hidden))
            return self.head(hidden.mean(1))

    return Encoder()


def test_taps_alone():
    space = {}
    exec(shown("with hb.tap("), space)
    model, x, taps = space["model"], space["x"], space["taps"]
    assert torch.equal(space["output"], model(x))
    assert [tuple(hidden.shape) for hidden in taps["hidden"]] == [(2, 5, 32)] * 6
    assert taps["attention"].shape == (2, 4, 5, 5)
    torch.testing.assert_close(taps["attention"].sum(-1), torch.ones(2, 4, 5))
    assert taps["early"] is x
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_python():
    teacher, student = encoder(8, 4), encoder(4, 2)
    batch = {"input_ids": torch.arange(6).reshape(2, 3)}
    space = {"torch": torch, "teacher": teacher, "student": student, "batch": batch}
    space["loader"] = [batch] * 4
    exec(shown("state = run.fit("), space)
    assert space["state"].step == 12


def test_a_cache_in_python(tmp_path, monkeypatch):
    import hookbrew

    monkeypatch.chdir(tmp_path)
    teacher, ran = encoder(8, 4), []
    teacher.register_forward_pre_hook(lambda *_: ran.append(1))
    space = {"hb": hookbrew, "teacher": teacher, "student": encoder(4, 2)}
    space["loader"] = [{"input_ids": torch.arange(6).reshape(2, 3) + number} for number in range(4)]
    exec(shown("cache="), space)
    assert len(ran) == 3 + 4  # three looks, and one epoch
    assert Cache(tmp_path / "kept").facts["stored"]["kind"] == "topk"


def student():
    """The blocks of the section on students, in TOML and in Python."""
    marks = {"toml": "uniform:3", "python": "hb.student("}
    return [next(block for block in blocks(kind) if mark in block) for kind, mark in marks.items()]


def test_a_student_out_of_its_teacher(project, monkeypatch):
    import hookbrew

    toml, python = student()
    teacher = encoder(8, 4)
    space = {"hb": hookbrew, "teacher": teacher}
    exec(python, space)
    made = space["student"].encoder.layer
    assert len(made) == 2
    assert torch.equal(made[1].weight, teacher.encoder.layer[3].weight)
    monkeypatch.chdir(project)
    Path("made.toml").write_text(tomli_w.dumps(tomllib.loads(blocks("toml")[0]) | tomllib.loads(toml)))
    done = CliRunner().invoke(main, ["check", "made.toml"], prog_name="hookbrew")
    assert done.exit_code == 0, done.output


def test_the_plugin(monkeypatch):
    entry, loss = types.ModuleType("hookbrew_gap"), types.ModuleType("hookbrew_gap.loss")
    exec(shown("def hookbrew_register_losses"), vars(entry))
    exec(shown("class Gap:"), vars(loss))
    monkeypatch.setitem(sys.modules, "hookbrew_gap", entry)
    monkeypatch.setitem(sys.modules, "hookbrew_gap.loss", loss)
    known = catalogue(discover=False, plugins=[entry])
    assert known.names("losses") == ["gap"]
    check_loss(known.load("losses", "gap")(scale=2.0))


def operable():
    """A model with the paths of the example of surgery."""

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dense, self.act = torch.nn.Linear(32, 32), torch.nn.ReLU()

        def forward(self, x):
            return self.act(self.dense(x))

    model = torch.nn.Module()
    model.blocks = torch.nn.Sequential(*(Block() for _ in range(3)))
    return model


def test_surgery():
    model = operable()
    keys, x = [*model.state_dict()], torch.ones(2, 32)
    before = model.blocks(x)
    space = {"model": model, "optimizer": torch.optim.AdamW(model.parameters())}
    exec(shown("hb.Surgery"), space)
    assert [str(edit) for edit in space["surgery"].edits] == [
        "swap 'blocks[*].act'",
        "wrap 'blocks[-1].dense' (noisy)",
        "insert 'blocks[1]'",
        "freeze 'blocks[0]'",
    ]
    space["surgery"].undo()
    assert [*model.state_dict()] == keys
    assert torch.equal(model.blocks(x), before)


def test_surgery_in_a_file(project, monkeypatch):
    monkeypatch.chdir(project)
    (shown,) = [block for block in blocks("toml") if "[[surgery]]" in block]
    Path("surgery.toml").write_text(f"{blocks('toml')[0]}\n{shown}")
    done = CliRunner().invoke(main, ["check", "surgery.toml"], prog_name="hookbrew")
    assert done.exit_code == 0, done.output
    assert "surgery on teacher: reset classifier" in done.output


def test_theseus(project, monkeypatch):
    """With a student of three of the teacher's layers; 8 steps, in all of which it runs."""
    from transformers import BertForSequenceClassification

    monkeypatch.chdir(project)
    teacher = BertForSequenceClassification.from_pretrained("teacher")
    teacher.bert.encoder.layer = teacher.bert.encoder.layer[::2]
    teacher.config.num_hidden_layers = 3
    teacher.save_pretrained("half")
    (shown,) = [block for block in blocks("toml") if "theseus" in block]
    base = {key: value for key, value in tomllib.loads(blocks("toml")[0]).items() if key not in ("losses", "callbacks")}
    base |= {"losses": [{"type": "ce"}], "train": {"steps": 8}, "output": "runs/theseus"}
    base["student"] = {**base["teacher"], "pretrained_model_name_or_path": "half"}
    Path("theseus.toml").write_text(tomli_w.dumps(base | tomllib.loads(shown)))
    for command in ("check", "run"):
        done = CliRunner().invoke(main, [command, "theseus.toml"], prog_name="hookbrew")
        assert done.exit_code == 0, done.output
    assert BertForSequenceClassification.from_pretrained("runs/theseus/final").config.num_hidden_layers == 3


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
