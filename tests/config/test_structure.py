"""A document becomes an experiment."""

from pathlib import Path

import pytest

from hookbrew.config import (
    Component,
    Factory,
    Optimizer,
    Train,
    Weight,
    read,
    structure,
    structure_component,
    structure_loss,
)
from hookbrew.errors import ConfigError
from hookbrew.options import options

HEAD = 'output = "o"\nstudent.factory = "a:b"\ndata.train.factory = "a:b"\ntrain.epochs = 1\n'


@pytest.fixture
def told(folder, fake):
    """What level 2 says about a text: path and message of each problem."""

    def run(text, *sets, names=()):
        (folder / "kd.toml").write_text(text)
        with pytest.raises(ConfigError) as caught:
            structure(read("kd.toml", sets), fake)
        assert all(problem.place for problem in caught.value.problems)
        return [f"{problem.path}: {problem.message}" for problem in caught.value.problems]

    return run


def test_a_whole_file(structured, good, fake, folder):
    experiment = structured(good)
    assert experiment.output == folder / "runs/sms"
    assert experiment.seed == 13
    assert experiment.teacher == Factory(
        factory="zoo.models:Big.load", arguments={"pretrained_model_name_or_path": "teacher"}
    )
    assert experiment.student.arguments == {
        "width": 8,
        "inner": {"factory": "zoo.parts:Part", "file": str(folder / "part.bin")},
    }
    assert experiment.data.train.arguments == {"root": str(folder.parent / "data")}
    assert experiment.train == Train(epochs=3)
    assert experiment.optimizer == Optimizer(type="SGD", lr=1.0, arguments={"betas": [0.9, 0.99]})
    linear = fake.load("schedules", "linear")
    assert experiment.lr_schedule == Component(type="linear", options=linear(end=0.5))
    first, second = experiment.losses
    assert first.options == fake.load("losses", "kd")(temperature=8.0)
    assert first.weight == Weight(base=0.5, schedule=Component(type="linear", options=linear(end=0.1)))
    assert (first.student, first.mask, first.projection) == (None, True, None)
    assert second.student == "encoder.layer[0:3]"
    assert second.projection == Component(type="linear", options=fake.load("projections", "linear")())
    assert second.weight == Weight()
    assert experiment.callbacks == [Component(type="note", options=fake.load("callbacks", "note")(every=5))]


def test_every_mistake_is_told_at_once_in_the_order_of_the_file(folder, fake):
    (folder / "kd.toml").write_text(
        """\
seed = "one"
epochs = 3

[student]
factory = "zoo.models.Small"

[data]
train = { factory = "zoo.data:train", inner = [{ factory = "nope" }] }
batch_size = 0

[train]
epoch = 90

[[losses]]
type = "needy"
epoch = 90

[[losses]]
type = "kd"
wieght = 50
temperature = -1

[[losses]]
type = "dkdd"
mask = 3
"""
    )
    with pytest.raises(ConfigError) as caught:
        structure(read("kd.toml"), fake)
    assert str(caught.value) == (
        """\
kd.toml:1:1: output: missing: this key is required
kd.toml:1:1: seed: expected an integer, got the string 'one'
  |
1 | seed = "one"
  | ^^^^
kd.toml:2:1: epochs: unknown key; did you mean 'train.epochs'?
  |
2 | epochs = 3
  | ^^^^^^
kd.toml:5:1: student.factory: the string 'zoo.models.Small' is not module:attribute, """
        """like transformers:AutoModel.from_pretrained
  |
5 | factory = "zoo.models.Small"
  | ^^^^^^^
kd.toml:8:50: data.train.inner[0].factory: the string 'nope' is not module:attribute, """
        """like transformers:AutoModel.from_pretrained
  |
8 | train = { factory = "zoo.data:train", inner = [{ factory = "nope" }] }
  |                                                  ^^^^^^^
kd.toml:9:1: data.batch_size: must be >= 1: 0
  |
9 | batch_size = 0
  | ^^^^^^^^^^
kd.toml:12:1: train.epoch: unknown key; did you mean 'epochs'?
   |
12 | epoch = 90
   | ^^^^^
kd.toml:16:1: losses[0].epoch: unknown key; did you mean 'epochs'? (it is required)
   |
16 | epoch = 90
   | ^^^^^
kd.toml:20:1: losses[1].wieght: unknown key; did you mean 'weight'?
   |
20 | wieght = 50
   | ^^^^^^
kd.toml:21:1: losses[1].temperature: must be > 0: -1.0
   |
21 | temperature = -1
   | ^^^^^^^^^^^
kd.toml:24:1: losses[2].type: no loss called 'dkdd'; did you mean 'kd'?
   |
24 | type = "dkdd"
   | ^^^^
kd.toml:25:1: losses[2].mask: expected true or false or a string, got 3
   |
25 | mask = 3
   | ^^^^"""
    )


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("epochs = 3\nsteps = 4", "train.steps: give either epochs or steps, not both"),
        ("accumulate = 2", "train: missing: give either epochs or steps"),
        ("epocs = 3", "train.epocs: unknown key; did you mean 'epochs'?"),
        ("step = 3", "train.step: unknown key; did you mean 'steps'?"),
    ],
)
def test_a_run_has_one_length(told, train, expected):
    head = HEAD.replace("train.epochs = 1\n", "")
    assert told(f'{head}losses = [{{type = "kd"}}]\n[train]\n{train}\n') == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[losses]]\ntemperature = 2", ["losses[0].type: missing: this key is required"]),
        ('[[losses]]\ntpye = "kd"', ["losses[0].tpye: unknown key; did you mean 'type'? (it is required)"]),
        ("[[losses]]\ntype = 3", ["losses[0].type: expected a string, got 3"]),
        ('losses = [{type = "kd"}, "kd"]', ["losses[1]: expected a table, got the string 'kd'"]),
        (
            '[[losses]]\ntype = "kd"\nweight = "high"',
            ["losses[0].weight: expected a number or a table, got the string 'high'"],
        ),
        ('[[losses]]\ntype = "kd"\nweight = true', ["losses[0].weight: expected a number or a table, got true"]),
        (
            '[[losses]]\ntype = "kd"\nweight = {base = "x"}',
            [
                "losses[0].weight.type: missing: this key is required",
                "losses[0].weight.base: expected a number, got the string 'x'",
            ],
        ),
        (
            '[[losses]]\ntype = "kd"\nweight = {type = "linaer", base = 2}',
            ["losses[0].weight.type: no schedule called 'linaer'; did you mean 'linear'?"],
        ),
        (
            '[[losses]]\ntype = "kd"\nweight = {type = "linear", bse = 2, end = 2}',
            [
                "losses[0].weight.bse: unknown key; did you mean 'base'?",
                "losses[0].weight.end: must be <= 1: 2.0",
            ],
        ),
        (
            '[[losses]]\ntype = "hidden"\nprojection = "lin"',
            ["losses[0].projection: no projection called 'lin'; did you mean 'linear'?"],
        ),
        (
            '[[losses]]\ntype = "hidden"\nprojection = {type = "mlp", widht = 3}',
            ["losses[0].projection.widht: unknown key; did you mean 'width'?"],
        ),
        ('[[losses]]\ntype = "hidden"\nprojection = 3', ["losses[0].projection: expected a table, got 3"]),
        (
            '[[losses]]\ntype = "kd"\noptions = {temperature = 2}',
            [
                "losses[0].options: unknown key; one of: fused, labels, layers, mask, metric, name, optimizer, "
                "projection, rounds, student, tag, teacher, temperature, weight"
            ],
        ),
        (
            '[[losses]]\ntype = "needy"\nepochs = 1\nlow = 0.5\nhigh = 0.1',
            ["losses[0].high: must not be below low: 0.1 < 0.5"],
        ),
        ('callbacks = ["note"]\n[[losses]]\ntype = "kd"', ["callbacks[0]: expected a table, got the string 'note'"]),
        ('callbacks = "note"\n[[losses]]\ntype = "kd"', ["callbacks: expected a list, got the string 'note'"]),
        ('lr_schedule = "linear"\n[[losses]]\ntype = "kd"', ["lr_schedule: expected a table, got the string 'linear'"]),
        ('teacher = "x"\n[[losses]]\ntype = "kd"', ["teacher: expected a table, got the string 'x'"]),
        (
            'teacher.factry = "a:b"\n[[losses]]\ntype = "kd"',
            ["teacher.factry: unknown key; did you mean 'factory'? (it is required)"],
        ),
        ('teacher.x = 1\n[[losses]]\ntype = "kd"', ["teacher.factory: missing: this key is required"]),
        ('teacher.factory = 1\n[[losses]]\ntype = "kd"', ["teacher.factory: expected a string, got 1"]),
        (
            'teacher = {factory = "a:b", x = {factory = 2}}\n[[losses]]\ntype = "kd"',
            ["teacher.x.factory: expected a string, got 2"],
        ),
        ('optimizer.lr = "fast"\n[[losses]]\ntype = "kd"', ["optimizer.lr: expected a number, got the string 'fast'"]),
        ('optimizer.lr = 0\n[[losses]]\ntype = "kd"', ["optimizer.lr: must be > 0: 0.0"]),
        ('optimizer.type = 1\n[[losses]]\ntype = "kd"', ["optimizer.type: expected a string, got 1"]),
        (
            'pythonpath = ["", 3]\n[[losses]]\ntype = "kd"',
            ["pythonpath[0]: a path cannot be empty", "pythonpath[1]: expected a path, got 3"],
        ),
        (
            'data.pad = {x = "y"}\n[[losses]]\ntype = "kd"',
            ["data.pad.x: expected an integer or a number, got the string 'y'"],
        ),
    ],
)
def test_what_a_table_may_say(told, text, expected):
    assert sorted(told(HEAD + text + "\n")) == sorted(expected)


@pytest.mark.parametrize("key", ["stages"])
def test_tables_of_later_versions_are_unknown(told, key):
    (message,) = told(f'{HEAD}losses = [{{type = "kd"}}]\n[{key}]\nx = 1\n')
    assert message.startswith(f"{key}: unknown key; ")


@pytest.mark.parametrize("name", ["a:b", "a.b_c:D.e", "_x:y", "zoo.größe:Ä"])
def test_names_of_factories(structured, name):
    head = HEAD.replace('student.factory = "a:b"', f'student.factory = "{name}"')
    assert structured(f'{head}losses = [{{type = "kd"}}]\n').student.factory == name


@pytest.mark.parametrize("name", ["", "a", "a:", ":b", "a:b:c", "a b:c", "a:b()", "1a:b", "a..b:c", "a:b.", "a/b:c"])
def test_malformed_names_of_factories(told, name):
    head = HEAD.replace('student.factory = "a:b"', f'student.factory = "{name}"')
    assert told(f'{head}losses = [{{type = "kd"}}]\n') == [
        f"student.factory: the string {name!r} is not module:attribute, like transformers:AutoModel.from_pretrained"
    ]


def test_paths_among_options_are_relative_to_the_file(structured, folder):
    experiment = structured(
        f'{HEAD}[[losses]]\ntype = "hidden"\ntable = "t.bin"\n'
        '[[callbacks]]\ntype = "note"\nfolders = ["a", "/b", "~/c"]\n'
    )
    assert experiment.losses[0].options.table == folder / "t.bin"
    assert experiment.callbacks[0].options.folders == [folder / "a", Path("/b"), Path("~/c").expanduser()]


def test_paths_of_the_command_line_are_relative_to_the_current_folder(folder, fake):
    (folder / "sub").mkdir()
    (folder / "sub" / "kd.toml").write_text(f'{HEAD}losses = [{{type = "hidden"}}]\n')
    sets = ["output=runs/a", "losses[0].table=t.bin", "student.file=./w", 'pythonpath=["x"]']
    experiment = structure(read("sub/kd.toml", sets), fake)
    assert experiment.output == folder / "runs/a"
    assert experiment.losses[0].options.table == folder / "t.bin"
    assert experiment.student.arguments == {"file": str(folder / "w")}
    assert experiment.pythonpath == [folder / "x"]
    assert structure(read("sub/kd.toml"), fake).output == folder / "sub/o"


def test_a_pretrained_folder_that_is_there_becomes_absolute(structured, folder):
    (folder / "local").mkdir()
    text = (
        f'{HEAD}losses = [{{type = "kd"}}]\n[teacher]\nfactory = "a:b"\npretrained_model_name_or_path = "local"\n'
        'more = {pretrained_model_name_or_path = "bert-base"}\n'
    )
    assert structured(text).teacher.arguments == {
        "pretrained_model_name_or_path": str(folder / "local"),
        "more": {"pretrained_model_name_or_path": "bert-base"},
    }


@pytest.mark.parametrize(
    ("setting", "meant"), [("epochs=5", "train.epochs"), ("lr=1", "optimizer.lr"), ("batch_size=2", "data.batch_size")]
)
def test_a_key_without_its_table_is_told_where_it_belongs(told, setting, meant):
    key = setting.partition("=")[0]
    text = f'{HEAD}losses = [{{type = "kd"}}]\n'
    assert told(text, setting) == [f"{key}: unknown key; did you mean {meant!r}?"]


def test_an_empty_output_is_refused(told):
    assert told(f'{HEAD}losses = [{{type = "kd"}}]\n', "output=") == ["output: a path cannot be empty"]


def test_reading_does_not_change_the_document(folder, fake, good):
    (folder / "kd.toml").write_text(good)
    document = read("kd.toml")
    before = repr(document.tree)
    structure(document, fake)
    assert repr(document.tree) == before


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"type": "kd", "temperatur": 2}, "loss 'kd': temperatur: unknown key; did you mean 'temperature'?"),
        ({"type": "kd", "temperature": 0}, "loss 'kd': temperature: must be > 0: 0.0"),
        ({"type": "kdd"}, "no loss called 'kdd'; did you mean 'kd'?"),
        ({"type": 3}, "loss 3: type: expected a string, got 3"),
        ({"temperature": 2}, "loss: type: missing: this key is required"),
        (
            {"type": "kd", "rounds": "x", "weight": {"type": "linear", "end": 3}},
            "loss 'kd': rounds: expected an integer, got the string 'x'\nloss 'kd': weight.end: must be <= 1: 3.0",
        ),
    ],
)
def test_a_loss_of_the_python_api_is_as_strict(fake, table, expected):
    with pytest.raises(ConfigError) as caught:
        structure_loss(table, fake)
    assert str(caught.value) == expected


def test_a_loss_of_the_python_api(fake):
    loss = structure_loss({"type": "kd", "temperature": 8, "layers": (1, 2), "weight": 2, "projection": None}, fake)
    assert loss.options == fake.load("losses", "kd")(temperature=8.0, layers=[1, 2])
    assert loss.weight == Weight(base=2.0)
    made = structure_loss({"type": "kd", "weight": Weight(base=3.0)}, fake)
    assert made.weight == Weight(base=3.0)


def test_a_component_of_the_python_api(fake):
    note = structure_component("callbacks", {"type": "note", "every": 2}, fake)
    assert note == Component(type="note", options=fake.load("callbacks", "note")(every=2))
    with pytest.raises(ConfigError) as caught:
        structure_component("schedules", {"type": "linear", "end": 3}, fake)
    assert str(caught.value) == "schedule 'linear': end: must be <= 1: 3.0"
    with pytest.raises(ConfigError) as caught:
        structure_component("augments", {"type": "nt"}, fake)
    assert str(caught.value) == "no augment called 'nt'; did you mean 'note'?"


def test_unknown_names_are_suggested_among_the_keys_of_the_table_and_the_options(fake):
    @options
    class Long:
        student_layers: int = 1

    class One:
        def names(self, kind):
            return ["long"]

        def load(self, kind, name):
            return Long

    with pytest.raises(ConfigError) as caught:
        structure_loss({"type": "long", "studnet": "a", "student_layer": 2}, One())
    assert [problem.message for problem in caught.value.problems] == [
        "unknown key; did you mean 'student_layers'?",
        "unknown key; did you mean 'student'?",
    ]
