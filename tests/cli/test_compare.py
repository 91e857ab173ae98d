"""`hookbrew compare`: how models and data are named, what is written, and what is said of mistakes."""

import json
import re
import shutil
import sys

import pytest
import torch
from click.testing import CliRunner

from hookbrew.cli import main
from tests.run.conftest import CONFIG, MODULE

QUICK = ["--batch-sizes", "none", "--quiet"]
KINDS = "a model is a run folder, a .toml file, a folder of transformers, or module:factory"
OTHER = "have other evaluation data; say which counts: --data runs/toy"
ENDS = "its name ends in none of .safetensors, .bin, .pt, .pth"
MORE = """


def broken():
    return 3


def edited():
    from transformers import BertForSequenceClassification
    made = BertForSequenceClassification.from_pretrained("tiny")
    for layer in made.bert.encoder.layer:
        layer.intermediate.intermediate_act_fn = torch.nn.Tanh()
    return made
"""


def call(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)], prog_name="hookbrew")


def ok(*arguments):
    done = call(*arguments)
    assert done.exit_code == 0, done.output
    return done


def refused(*arguments):
    """The one line that is said."""
    done = call(*arguments)
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.strip().splitlines()
    return line.removeprefix("error: ").removeprefix("Error: ")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a run that is done, a configuration, and models of transformers."""
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("compare")
    sys.modules.pop("toyland", None)  # of another folder
    (folder / "toyland.py").write_text(MODULE + MORE)
    config = CONFIG.partition("[[callbacks]]")[0]
    (folder / "toy.toml").write_text(config)
    (folder / "other.toml").write_text(config.replace("number = 9, seed = 1", "number = 8, seed = 2"))
    (folder / "bare.toml").write_text(re.sub(r"evaluate = .*\n", "", config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        best = "callbacks=[{ type = 'best', metric = 'accuracy' }]"
        ok("run", "toy.toml", "--quiet", "-s", best)
        ok("run", "other.toml", "--quiet", "-s", "output=runs/other", "-s", best)
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20, "num_labels": 3}
    for name, depth in (("big", 3), ("tiny", 2)):
        BertForSequenceClassification(BertConfig(num_hidden_layers=depth, **sizes)).save_pretrained(folder / name)
    yield folder
    sys.modules.pop("toyland", None)


@pytest.fixture(autouse=True)
def _here(home, monkeypatch):
    monkeypatch.chdir(home)


def read(*arguments):
    """The JSON of a comparison."""
    ok("compare", *arguments, *QUICK, "--json", "out.json")
    with open("out.json", encoding="utf-8") as file:
        return json.load(file)


def named(found):
    return [one["name"] for one in found["models"]]


def test_a_run_alone_is_its_teacher_and_its_student(home):
    found = read("runs/toy")
    assert named(found) == ["teacher", "student"]
    assert (found["samples"], found["facts"]["data"]) == (9, "runs/toy")
    teacher, student = found["models"]
    assert teacher["parameters"] > student["parameters"]
    assert (student["disk"], student["filed"]) == ((home / "runs/toy/final/student.safetensors").stat().st_size, True)
    status = json.loads((home / "runs/toy/status.json").read_text())
    assert student["quality"]["accuracy"] == pytest.approx(status["metrics"]["accuracy"])
    space = {}
    exec(MODULE, space)
    tokens = sum(len(sample["input_ids"]) for sample in space["samples"](9, seed=1))
    assert student["similarity"]["over"] == f"{tokens} tokens"


def test_models_by_every_kind_of_name():
    wanted = ["t=toy.toml:teacher", "runs/toy", "runs/toy:best", "runs/toy/final", "fresh=toy.toml", "bert=tiny"]
    found = read(*wanted, "toyland:Net", "same=toyland:Net@runs/toy/final/student.safetensors", "--data", "toy.toml")
    assert named(found) == ["t", "toy", "toy:best", "toy:final", "fresh", "bert", "Net", "same"]
    by = {one["name"]: one for one in found["models"]}
    for name in ("toy:final", "same"):
        assert by[name]["quality"] == by["toy"]["quality"]
    assert by["fresh"]["quality"]["loss"] != by["toy"]["quality"]["loss"]
    assert by["bert"]["kind"] == "BertForSequenceClassification"
    assert [by[name]["filed"] for name in ("t", "toy", "bert", "Net", "same")] == [False, True, True, False, True]


BERT = """\
factory = "transformers:BertForSequenceClassification.from_pretrained"
pretrained_model_name_or_path = "tiny"

[[surgery]]
type = "swap"
path = "**.intermediate_act_fn"
module = { factory = "torch.nn:Tanh" }

[data]"""


def test_a_student_is_edited_as_its_run_says(home):
    config = (home / "toy.toml").read_text().partition('[[losses]]\ntype = "hidden')[0]
    config = config.replace("runs/toy", "edits/bert").replace('factory = "toyland:Net"\n\n[data]', BERT)
    (home / "bert.toml").write_text(config)
    ok("run", "bert.toml", "--quiet")
    oracle = "toyland:edited@edits/bert/final/model.safetensors"
    models = read("edits/bert", "it=edits/bert/final", "edits/bert:final", oracle, "--data", "toy.toml")["models"]
    losses = [one["quality"]["loss"] for one in models]
    assert losses == losses[-1:] * 4


def test_two_folders_of_transformers_on_the_data_of_a_file():
    found = read("big", "tiny", "--data", "toy.toml", "-s", "data.evaluate.number=5")
    assert (named(found), found["samples"]) == (["big", "tiny"], 5)
    assert found["models"][1]["similarity"]["first"][0] == "bert.encoder.layer.0:in"
    again = read("big", "big again=big", "--data", "toy.toml")["models"][1]
    assert again["quality"]["agreement"] == 1.0
    assert again["similarity"]["values"][3][3] == pytest.approx(1.0, abs=1e-4)


def test_what_is_printed_and_written(home):
    done = ok("compare", "runs/toy", "--rounds", 2, "--batch-sizes", "1,4", "--to", "page.html", "--json", "all.json")
    assert "timing batches of 4, 2 rounds" in done.stderr
    assert "written: page.html" in done.stderr
    for word in ("latency, batch 4", "calibration error (ECE)", "agreement with teacher", "9 samples of runs/toy"):
        assert word in done.stdout
    text = (home / "page.html").read_text()
    assert "agreement with teacher" in text
    assert text.count("<figure") == 6
    ok("compare", "runs/toy", *QUICK, "--to", "page.html", "--json", "all.json")  # earlier ones of ours
    markdown = ok("compare", "runs/toy", *QUICK, "--markdown").stdout
    assert markdown.startswith("|  | teacher | student |\n| :-- | --: | --: |\n| parameters |")


def test_files_of_others_stay(home):
    (home / "mine.json").write_text("{}")
    said = "is no earlier comparison; give another name, or replace it with --overwrite"
    assert refused("compare", "runs/toy", *QUICK, "--json", "mine.json") == f"mine.json {said}"
    assert (home / "mine.json").read_text() == "{}"
    (home / "mine.html").write_text("me")
    assert "is no earlier report" in refused("compare", "runs/toy", *QUICK, "--to", "mine.html")
    assert "there is no folder nowhere" in refused("compare", "runs/toy", *QUICK, "--to", "nowhere/a.html")
    ok("compare", "runs/toy", *QUICK, "--json", "mine.json", "--overwrite")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runs/tow"], "there is no 'runs/tow'; did you mean 'runs/toy'?"),
        (["runs/tow:best"], "there is no 'runs/tow:best'; did you mean 'runs/toy'?"),
        (["nothing"], f"there is no 'nothing'; {KINDS}"),
        (["runs/toy:techer"], "runs/toy has no model 'techer'; did you mean 'teacher'?"),
        (["toy.toml:techer", "runs/toy"], "toy.toml has no model 'techer'; did you mean 'teacher'?"),
        (["runs/toy", "toy=runs/other"], "2 models are called 'toy'; name them: a=..., b=..."),
        (["runs/toy", "runs/other"], f"runs/toy and runs/other {OTHER}"),
        (["big", "tiny"], "there is nothing to compare them on; name a configuration or a run: --data FILE.toml"),
        (["big:best"], "big is no run folder, so there is no 'best' in it; leave ':best' out"),
        (["runs"], "runs is neither a run folder nor a model: it has no config.json"),
        (["runs/toy", "--data", "toi.toml"], "there is no 'toi.toml'; did you mean 'toy.toml'?"),
        (["runs/toy", "--data", "big"], "--data big: this folder is no run; name a run folder or a configuration file"),
        (["runs/toy", "--data", "bare.toml"], "bare.toml has no data.evaluate; name data that has: --data FILE.toml"),
        (["runs/toy", "--task", "x"], "--task x: there is no such task; it has no tasks"),
        (["runs/toy", "toyland:broken"], "toyland:broken gave a int; expected a torch module"),
        (["runs/toy", "toyland:Nett"], "Nett.factory: toyland has no 'Nett'; did you mean 'Net'?"),
        (["runs/toy", "toyland:Net@x.txt"], f"x.txt is no file of weights: {ENDS}"),
        (["runs/toy", "--layers", "studet=layers[0]"], "layers: no model is called 'studet'; did you mean 'student'?"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(arguments, said):
    assert refused("compare", *arguments, *QUICK) == said


def test_weights_that_do_not_fit():
    said = refused("compare", "toyland:Net@big/model.safetensors", "--data", "toy.toml", *QUICK)
    assert said.startswith("big/model.safetensors does not fit Net: ")


def test_batch_sizes_that_are_none():
    done = call("compare", "runs/toy", "--batch-sizes", "1,x")
    assert (done.exit_code, "'1,x' is no list of batch sizes, as 1,8,32, or none" in done.stderr) == (2, True)
    assert "there is no batch of 64 samples" in refused("compare", "runs/toy", "--batch-sizes", "64", "--quiet")


def test_weights_that_are_missing_are_not_random_ones(home):
    from safetensors.torch import load_file, save_file

    shutil.copytree(home / "tiny", home / "holed", dirs_exist_ok=True)
    weights = load_file(home / "holed/model.safetensors")
    weights.pop("classifier.weight")
    save_file(weights, home / "holed/model.safetensors", metadata={"format": "pt"})
    said = refused("compare", "holed", "--data", "toy.toml", *QUICK).splitlines()[-1]
    assert "lack weights of BertForSequenceClassification: classifier.weight" in said


def test_a_run_without_a_student(home):
    shutil.copytree(home / "runs/toy", home / "runs/half", dirs_exist_ok=True)
    for name in ("final", "best"):
        shutil.rmtree(home / f"runs/half/{name}")
    assert refused("compare", "runs/half", *QUICK) == "runs/half has no student yet: neither final/ nor best/ is there"


def test_a_run_that_was_moved_and_one_of_stages(home):
    stages = '\n[[stages]]\nname = "one"\n\n[[stages]]\nname = "two"\n'
    (home / "staged.toml").write_text((home / "toy.toml").read_text() + stages)
    ok("run", "staged.toml", "--quiet", "-s", "output=runs/staged", "-s", "train.epochs=1")
    shutil.move(home / "runs/staged", home / "runs/moved")
    found = read("moved=runs/moved", "--data", "toy.toml")
    assert named(found) == ["teacher", "moved"]
    assert found["models"][1]["disk"] == (home / "runs/moved/two/final/student.safetensors").stat().st_size


def test_one_of_several_tasks(home):
    text = (home / "toy.toml").read_text()
    text = re.sub(r"^(\[+)(data|teacher|losses)\]", r"\1tasks.a.\2]", text, flags=re.MULTILINE)
    teacher, rest = text[text.index("[tasks.a.teacher]") :].split("[student]")
    data = rest[rest.index("[tasks.a.data]") : rest.index("[train]")].replace("number = 9", "number = 6")
    second = (teacher + data).replace("tasks.a", "tasks.b") + '[[tasks.b.losses]]\ntype = "kd_ce"\n'
    (home / "tasks.toml").write_text(text + "\n" + second)
    assert refused("compare", "tasks.toml", *QUICK) == "there are 2 tasks; choose one: --task a, or b"
    found = read("tasks.toml", "--task", "b")
    assert (named(found), found["samples"], found["facts"]["data"]) == (["teacher", "student"], 6, "tasks.toml (b)")
    assert refused("compare", "tasks.toml", "--task", "c", *QUICK) == "--task c: there is no such task; one of: a, b"
