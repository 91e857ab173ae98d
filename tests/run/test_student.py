"""A student out of its teacher in a run: what is trained, saved, resumed and refused."""

import importlib
import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from hookbrew.config import read
from hookbrew.factory import importing
from hookbrew.models import sample
from hookbrew.plan import planned
from hookbrew.run import built, resume, run

MODULE = """
import torch
import transformers as t


def bert(layers=4):
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    config = t.BertConfig(**sizes, num_hidden_layers=layers, max_position_embeddings=32, num_labels=3)
    return t.BertForSequenceClassification(config)


def samples():
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, 60, (n,), generator=generator) for n in (5, 7, 4, 6)]
    return [{"input_ids": i, "attention_mask": torch.ones_like(i), "labels": int(i[0]) % 3} for i in ids]


def ids():
    return list(range(61))
"""

CONFIG = """\
output = "runs/kd"
pythonpath = ["."]
train = { epochs = 2, device = "cpu", threads = 1 }

[teacher]
factory = "kdland:bert"

[student]
from = "teacher"
keep = { "bert.encoder.layer" = [0, 3] }

[data]
train = { factory = "kdland:samples" }
batch_size = 2
pad = { input_ids = 0, attention_mask = 0 }

[[losses]]
type = "kd_ce"

[[losses]]
type = "hidden_mse"
student = "bert.encoder.layer[*]"
teacher = "bert.encoder.layer[0,3]"
"""


@pytest.fixture
def land(tmp_path, monkeypatch):
    """A folder with kd.toml, as the working directory."""
    pytest.importorskip("transformers")
    (tmp_path / "kdland.py").write_text(MODULE)
    (tmp_path / "kd.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("kdland", None)


def test_check_counts_what_is_left(land, hookbrew):
    done = hookbrew("check", "kd.toml")
    assert done.exit_code == 0, done.output
    assert "student BertForSequenceClassification" in done.stdout
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert "hidden_mse/1: student bert.encoder.layer.1 ~ teacher bert.encoder.layer.3, a mean over positions" in lines
    assert not (land / "runs").exists()


def test_it_begins_as_the_teachers_layers(land, known):
    run("kd.toml", ["optimizer.lr=1e-12", "output=runs/still"], catalogue=known, quiet=True)
    from transformers import BertForSequenceClassification

    student = BertForSequenceClassification.from_pretrained(land / "runs/still/final")
    assert student.config.num_hidden_layers == 2
    run(
        "kd.toml",
        [
            *("student.factory=kdland:bert", "optimizer.lr=1e-12", "output=runs/own", "losses=[{type='kd_ce'}]"),
        ],
        catalogue=known,
        quiet=True,
    )
    other = BertForSequenceClassification.from_pretrained(land / "runs/own/final")
    # the student of a factory draws weights of its own; that of a teacher draws none, and so equals what it is made of
    assert not torch.allclose(student.classifier.weight, other.classifier.weight, atol=1e-6)
    (stage,) = planned(read("kd.toml", []), known, quiet=True)
    with built([stage], known) as (prepared,):
        teacher = prepared.distillation.objective.parts[""].models["teacher"]
        for name, tensor in student.state_dict().items():
            assert torch.allclose(tensor, teacher.state_dict()[name.replace("layer.1", "layer.3")], atol=1e-6), name
        mine = {p.data_ptr() for p in prepared.distillation.student.parameters()}
        assert not mine & {p.data_ptr() for p in teacher.parameters()}


def test_the_run_resumes_exactly(land, known):
    sets = ["callbacks=[{type='checkpoint', every=1}]"]
    run("kd.toml", [*sets, "output=runs/whole"], catalogue=known, quiet=True)
    strike = "callbacks=[{type='checkpoint', every=1}, {type='strike', at=[2]}]"
    with pytest.raises(Exception, match="SIGTERM"):
        run("kd.toml", [strike, "output=runs/cut"], catalogue=known, quiet=True)
    resume(land / "runs/cut", ["callbacks=[{type='checkpoint', every=1}]"], catalogue=known, quiet=True, require="data")
    whole, cut = (load_file(land / f"runs/{name}/final/model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    manifest = json.loads(next((land / "runs/whole/checkpoints").glob("*/manifest.json")).read_text())
    assert manifest["facts"]["exact"]["student.from"] == "teacher"
    assert [v for k, v in manifest["facts"]["exact"].items() if k.startswith("student.keep")] == [[0, 3]]


def test_what_was_resolved_gives_the_same(land, known):
    run("kd.toml", ["output=runs/one"], catalogue=known, quiet=True)
    run(land / "runs/one/resolved.toml", ["output=runs/two"], catalogue=known, quiet=True)
    one, two = (load_file(land / f"runs/{name}/final/model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_commands_know_it(land, hookbrew):
    done = hookbrew("taps", "kd.toml")
    assert done.exit_code == 0, done.output
    assert "encoder.layer[0:2]" in done.stdout
    done = hookbrew("params", "kd.toml", "--json")
    student, teacher = json.loads(done.stdout)
    assert student["rows"][0]["parameters"] < teacher["rows"][0]["parameters"]
    done = hookbrew("config", "show", "kd.toml")
    assert 'from = "teacher"' in done.stdout


STAGES = """
[[stages]]
losses = [{ type = "hidden_mse", student = "bert.encoder.layer[*]", teacher = "bert.encoder.layer[0,3]" }]

[[stages]]
losses = [{ type = "kd_ce" }]
"""


def test_stages_have_the_one_student(land, known):
    text = CONFIG[: CONFIG.index("[[losses]]")] + STAGES
    (land / "kd.toml").write_text(text)
    state = run("kd.toml", catalogue=known, quiet=True)
    assert state.student.config.num_hidden_layers == 2


def test_a_teacher_of_a_task(land, known):
    text = CONFIG.replace("[teacher]", "[tasks.a.teacher]").replace("[data]", "[tasks.a.data]")
    text = text.replace("[[losses]]", "[[tasks.a.losses]]").replace('from = "teacher"', 'from = "tasks.a.teacher"')
    (land / "kd.toml").write_text(text)
    assert run("kd.toml", catalogue=known, quiet=True).student.config.num_hidden_layers == 2


MEASURED = """
from = "teacher"
keep = { "bert.encoder.layer" = "best:2" }
width = { hidden = 8, ffn = 12, by = "importance" }
vocabulary = { factory = "kdland:ids" }
batches = 2
"""


def test_what_is_measured_is_measured_on_the_training_data(land, known):
    text = CONFIG.replace('from = "teacher"\nkeep = { "bert.encoder.layer" = [0, 3] }\n', MEASURED)
    (land / "kd.toml").write_text(text[: text.index('[[losses]]\ntype = "hidden_mse"')])
    run("kd.toml", ["output=runs/one"], catalogue=known, quiet=True)
    run(land / "runs/one/resolved.toml", ["output=runs/two"], catalogue=known, quiet=True)
    from transformers import BertForSequenceClassification

    one, two = (BertForSequenceClassification.from_pretrained(land / f"runs/{name}/final") for name in ("one", "two"))
    sizes = (one.config.num_hidden_layers, one.config.hidden_size, one.config.intermediate_size, one.config.vocab_size)
    assert sizes == (2, 8, 12, 61)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one.parameters(), two.parameters(), strict=True))


def test_it_is_measured_on_the_inputs_of_its_own_teacher(land, known):
    text = CONFIG.replace("[teacher]", "[teachers.old_teacher]").replace('"kdland:samples"', '"kdland:apart"')
    text = text.replace('from = "teacher"', 'from = "teachers.old_teacher"')
    (land / "kd.toml").write_text(text[: text.index("[[losses]]")] + '[[losses]]\ntype = "kd_ce"\n')
    with (land / "kdland.py").open("a") as file:
        file.write("\n\ndef apart():\n    both = samples()\n")
        file.write("    return [one | {'teacher.old_teacher.input_ids': 1 + one['input_ids']} for one in both]\n")
    (stage,) = planned(read("kd.toml", []), known, quiet=True)
    with importing(stage.experiment.pythonpath):
        kdland = importlib.import_module("kdland")
    batches = sample(stage.experiment, "", kdland.bert(), {})
    given = sorted(int(ids) for batch in batches for row in batch["input_ids"] for ids in row if ids)
    assert given == sorted(1 + int(ids) for one in kdland.samples() for ids in one["input_ids"])


HERE = 'kd.toml:10:10: student.keep."bert.encoder.layer": '
WRONG = {
    "another": (
        'from = "teacher"',
        'from = "teachers.big"',
        "kd.toml:9:1: student.from: there is no 'teachers.big' in this file; did you mean 'teacher'?",
    ),
    "a path": (
        '"bert.encoder.layer" = [0, 3]',
        '"encoder.layer" = [0, 3]',
        "kd.toml:10:10: student.keep.\"encoder.layer\": BertForSequenceClassification has no 'encoder.layer';"
        " did you mean 'bert.encoder.layer'?",
    ),
    "a number": ("[0, 3]", "[0, 4]", f"{HERE}'bert.encoder.layer' has no layer 4; it has 4: 0 to 3"),
    "too many": ("[0, 3]", '"first:5"', f"{HERE}'first:5' asks for 5 of the 4 layers of 'bert.encoder.layer'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refused_with_its_place(land, hookbrew, case):
    old, new, message = WRONG[case]
    (land / "kd.toml").write_text(CONFIG.replace(old, new))
    done = hookbrew("check", "kd.toml")
    assert done.exit_code == 2
    assert f"error: {message}" in done.stderr
