"""`check`, `taps` and `config` on a real file: what they say, and that they leave no trace."""

import json
import re

import pytest
from torch import nn

from hookbrew.check import stop
from hookbrew.objective import plan


@pytest.fixture
def untouched(toy):
    """Nothing but caches of Python may appear in the folder."""

    def files():
        return {p: p.stat().st_mtime_ns for p in toy.rglob("*") if p.is_file() and "__pycache__" not in p.parts}

    before = files()
    yield
    assert files() == before


@pytest.mark.usefixtures("untouched")
def test_check_goes_through_four_levels(toy, hookbrew):
    done = hookbrew("check", "toy.toml")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[1:8] == [
        f"options  ok  losses kd_ce, hidden_mse; output {toy}/runs/toy",
        "build    ok  student Net, 331 parameters; gets input_ids, attention_mask",
        "            teacher Net, 591 parameters; gets input_ids, attention_mask",
        "            kd_ce: student logits ~ teacher logits, a mean over samples",
        "            hidden_mse/0: student layers.0 ~ teacher layers.0, a mean over positions, Linear projection",
        "            hidden_mse/1: student layers.1 ~ teacher layers.1, a mean over positions, Linear projection",
        "            12 steps",
    ]
    number = r"[\d.e+-]+"
    assert re.fullmatch(rf"step     ok  kd_ce {number}, gradient norm {number}", done.stdout.splitlines()[8])


@pytest.mark.usefixtures("untouched")
def test_check_tells_of_losses_in_chunks(hookbrew):
    done = hookbrew("check", "toy.toml", "-s", "train.chunked=true")
    assert done.exit_code == 0, done.output
    assert [line.strip() for line in done.stdout.splitlines()[2:7]] == [
        "build    ok  student Net, 331 parameters; gets input_ids, attention_mask",
        "student stops before head",
        "teacher Net, 591 parameters; gets input_ids, attention_mask",
        "teacher stops before head",
        "kd_ce: student head:in ~ teacher head:in, a mean over samples, in chunks",
    ]


def test_check_tells_why_losses_are_not_in_chunks(toy, hookbrew, monkeypatch):
    monkeypatch.setattr(plan, "LARGE", 0)
    text = (toy / "toy.toml").read_text().replace('type = "kd_ce"', 'type = "dkd"')
    (toy / "toy.toml").write_text(text)
    why = "loss 'dkd' has no chunked form, or none with these options"
    assert f"large logits are made whole: losses[0]: {why}" in hookbrew("check", "toy.toml").stdout
    refused = hookbrew("check", "toy.toml", "-s", "train.chunked=true")
    assert refused.exit_code == 2
    assert f"losses[0]: train.chunked: {why}" in refused.stderr


def test_check_names_what_no_loss_reaches(toy, hookbrew):
    text = (toy / "toy.toml").read_text()
    first, second = (text.index(f'[[losses]]\ntype = "{name}"') for name in ("kd_ce", "hidden_mse"))
    (toy / "toy.toml").write_text(text[:first] + text[second:])
    done = hookbrew("check", "toy.toml")
    assert done.exit_code == 0, done.output
    assert "teacher stops after layer 2 of 2 (layers.1)" in done.stdout
    assert done.stdout.splitlines()[-1].strip() == (
        "2 tensors of the student get no gradient from any loss: head.weight, head.bias"
    )


def test_check_of_a_teacher_that_must_not_stop(toy, hookbrew):
    text = (toy / "toy.toml").read_text()
    first, second = (text.index(f'[[losses]]\ntype = "{name}"') for name in ("kd_ce", "hidden_mse"))
    (toy / "toy.toml").write_text(text[:first] + text[second:])
    done = hookbrew("check", "toy.toml", "-s", "train.stop_teacher=false")
    assert done.exit_code == 0, done.output
    assert "stops" not in done.stdout


def test_check_tells_that_the_output_is_taken(toy, hookbrew):
    (toy / "runs/toy").mkdir(parents=True)
    refused = hookbrew("check", "toy.toml")
    assert refused.exit_code == 2
    assert "is not a folder of an earlier run (it has no status.json); remove it yourself" in refused.stderr
    (toy / "runs/toy/status.json").write_text("{}")
    done = hookbrew("check", "toy.toml")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[2].strip() == "an earlier run is there: `run` will ask for --overwrite"


@pytest.mark.usefixtures("untouched")
def test_taps_prints_the_tree(hookbrew):
    done = hookbrew("taps", "toy.toml", "--model", "teacher")
    assert done.exit_code == 0, done.output
    assert [" ".join(line.split()) for line in done.stdout.splitlines()] == [
        "module class parameters selector output",
        "model Net 591 :out (4, 3)",
        "embed Embedding 240 embed (4, 5, 12)",
        "layers[0:2] Linear 2 x 156 layers[0:2] (4, 5, 12)",
        "head Linear 39 head (4, 3)",
        "",
        "hidden[0:3] layers: 2 Linear, hidden[0] is the input of the first",
        "logits :out (4, 3)",
    ]
    assert json.loads(hookbrew("taps", "toy.toml", "--json").stdout)["tree"]["parameters"] == 331


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("arguments", [("toy.toml", "--map", "uniform"), ("toy.toml", "toy.toml")])
def test_taps_prints_a_layer_map(hookbrew, arguments):
    done = hookbrew("taps", *arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout == (
        "# uniform: the student's 2 Linear of width 8; the teacher's 2 Linear of width 12\n"
        "[[losses]]\n"
        'type = "hidden_mse"\n'
        'student = "layers[0:2]"\n'
        'teacher = "layers[0:2]"\n'
        'projection = "linear"\n'
    )
    assert hookbrew("taps", *arguments, "-s", "student.width=12").stdout == (
        done.stdout.replace("width 8", "width 12").replace('projection = "linear"\n', "")
    )


@pytest.mark.usefixtures("untouched")
def test_params_of_both_models(toy, hookbrew, edit):
    done = hookbrew("params", "toy.toml", "--depth", "1")
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[1] == ["parameters", "331", "591", "1.79"]
    assert [line[:3] for line in lines if line[:1] == ["model"]] == [["model", "Net", "331"], ["model", "Net", "591"]]


def test_params_without_a_teacher(toy, hookbrew, edit):
    edit('[teacher]\nfactory = "toyland:Net"\nwidth = 12\n', "")
    assert hookbrew("params", "toy.toml", "--depth", "0").stdout.split()[9:12] == ["model", "Net", "331"]


def test_a_layer_map_can_be_pasted(toy, hookbrew):
    text = (toy / "toy.toml").read_text()
    start, end = text.index('[[losses]]\ntype = "hidden_mse"'), text.index("[[callbacks]]")
    pasted = hookbrew("taps", "toy.toml", "--map", "last").stdout
    (toy / "pasted.toml").write_text(text[:start] + pasted + text[end:])
    done = hookbrew("check", "pasted.toml")
    assert done.exit_code == 0, done.output
    assert "hidden_mse/1: student layers.1 ~ teacher layers.1" in done.stdout


def test_taps_of_a_teacher_that_is_not_there(toy, hookbrew, edit):
    edit('[teacher]\nfactory = "toyland:Net"\nwidth = 12\n', "")
    done = hookbrew("taps", "toy.toml", "--model", "teacher")
    assert done.exit_code == 2
    assert "there is no [teacher] table in this file" in done.stderr
    assert "there is no [teacher] table in this file" in hookbrew("taps", "toy.toml", "--map", "last").stderr


@pytest.mark.usefixtures("untouched")
def test_config_show_is_a_file_again(toy, hookbrew):
    shown = hookbrew("config", "show", "toy.toml")
    assert shown.exit_code == 0
    (toy.parent / "again.toml").write_text(shown.stdout)
    assert hookbrew("config", "show", str(toy.parent / "again.toml")).stdout == shown.stdout
    (toy.parent / "again.toml").unlink()


@pytest.mark.usefixtures("toy")
def test_config_show_tells_origins(hookbrew):
    done = hookbrew("config", "show", "toy.toml", "--origin", "-s", "train.epochs=7")
    lines = [re.split(r"\s{2,}", line, maxsplit=1) for line in done.stdout.splitlines()]
    assert ["-s train.epochs=7", "train.epochs = 7"] in lines
    assert ["toy.toml:15", "data.batch_size = 4"] in lines
    assert ["default", "data.shuffle = true"] in lines


def test_the_schema_accepts_the_file(toy, hookbrew):
    import tomllib

    import jsonschema

    schema = json.loads(hookbrew("config", "schema").stdout)
    jsonschema.validate(tomllib.loads((toy / "toy.toml").read_text()), schema)


def test_what_a_setting_replaced_is_said_once(toy, hookbrew, caplog, edit):
    edit("lr = 1e-2", "lr = 1e-2\nbetas = [0.8, 0.9]")
    done = hookbrew("check", "toy.toml", "-s", "optimizer.type=SGD", "-s", "optimizer.lr=0.1")
    assert done.exit_code == 0, done.output
    assert caplog.messages == ["note: optimizer: type AdamW -> SGD; dropped lr (toy.toml:24), betas (toy.toml:25)"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("layer.5", "after layer 6 of 6 (layer.5)"),
        ("layer.2.0", "in layer 3 of 6, after layer.2.0"),
        ("heads.self", "after heads.self"),
        ("0", "after 0"),
    ],
)
def test_where_a_teacher_stops(path, said):
    model = nn.Module()
    model.layer = nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(6))
    model.heads = nn.ModuleDict({"self": nn.Linear(2, 2)})
    assert stop(model, path) == said
