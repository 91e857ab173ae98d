"""What a table of `[[losses]]` may say besides numbers and words: lists, tables of teachers, schedules, factories."""

import attrs
import pytest

from hookbrew.config import Component, Factory, Weight, check_names, read, structure, structure_loss, write
from hookbrew.config.strict import expected
from hookbrew.errors import ConfigError
from hookbrew.options import positive, varies

HEAD = 'output = "o"\nstudent.factory = "a:b"\ndata.train.factory = "a:b"\ntrain.epochs = 1\n[[losses]]\n'
MALFORMED = "is not module:attribute, like transformers:AutoModel.from_pretrained"


@pytest.fixture
def loss(structured):
    """The loss that the keys of one table give."""
    return lambda text: structured(HEAD + text + "\n").losses[0]


@pytest.fixture
def told(folder, fake):
    """What is said about the keys of one table, each path without `losses[0].`."""

    def run(text, *sets, level=structure):
        (folder / "kd.toml").write_text(HEAD + text + "\n")
        with pytest.raises(ConfigError) as caught:
            level(read("kd.toml", sets), fake)
        assert all(problem.place for problem in caught.value.problems)
        return [f"{problem.path.removeprefix('losses[0].')}: {problem.message}" for problem in caught.value.problems]

    return run


def test_selectors_are_strings_lists_or_a_table_of_teachers(loss):
    made = loss(
        'type = "hidden"\nstudent = ["a", "b"]\nteacher = { big = "c", small = ["d", "e"] }\nlabels = ["x", "y"]'
    )
    assert made.student == ["a", "b"]
    assert made.teacher == {"big": "c", "small": ["d", "e"]}
    assert made.labels == ["x", "y"]
    assert loss('type = "hidden"\nteacher = ["c"]').teacher == ["c"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("student = 3", "student: expected a string or a list, got 3"),
        ("student = { a = 1 }", "student: expected a string or a list, got a table"),
        ('student = ["a", 3]', "student[1]: expected a string, got 3"),
        ("student = []", "student: names nothing: write one, or leave this key out"),
        ("teacher = 3", "teacher: expected a string, a list or a table, got 3"),
        ("teacher = true", "teacher: expected a string, a list or a table, got true"),
        ("teacher = { big = 3 }", "teacher.big: expected a string or a list, got 3"),
        ('teacher = { big = ["a", 3] }', "teacher.big[1]: expected a string, got 3"),
        ("teacher = {}", "teacher: names nothing: write one, or leave this key out"),
        ("teacher = { big = [] }", "teacher: names nothing: write one, or leave this key out"),
        ("labels = 3", "labels: expected a string or a list, got 3"),
        ("labels = []", "labels: names nothing: write one, or leave this key out"),
        ("optimizer = 3", "optimizer: expected a table, got 3"),
        ('optimizer = "SGD"', "optimizer: expected a table, got the string 'SGD'"),
        ("varying = { margin = 3 }", "varying: unknown key; did you mean 'margin'?"),
    ],
)
def test_what_they_may_not_be(told, text, message):
    assert told(f'type = "hidden"\n{text}') == [message]


def test_a_union_in_words():
    assert expected(str | list[str] | dict[str, str]) == "a string, a list or a table"
    assert expected(int | str) == "an integer or a string"
    assert expected(float | None) == "a number"


@pytest.mark.parametrize(
    ("hint", "answer"),
    [(float, True), (float | None, True), (int, False), (bool, False), (float | str, False), (int | float, False)],
)
def test_which_options_may_vary(hint, answer):
    assert varies(hint) is answer


def test_an_option_may_be_a_schedule(loss, fake):
    made = loss('type = "kd"\ntemperature = { type = "linear", base = 8, end = 0.5 }')
    linear = fake.load("schedules", "linear")
    assert made.options == fake.load("losses", "kd")(temperature=8.0)
    assert made.varying == {"temperature": Weight(base=8.0, schedule=Component(type="linear", options=linear(end=0.5)))}


def test_its_base_is_the_default_of_the_option(loss):
    made = loss('type = "kd"\ntemperature = { type = "flat" }')
    assert (made.options.temperature, made.varying["temperature"].base) == (4.0, 4.0)
    made = loss('type = "hidden"\nmargin = { type = "flat", base = 2 }')
    assert (made.options.margin, made.varying["margin"].base) == (2.0, 2.0)
    assert loss('type = "kd"\ntemperature = 8').varying == {}


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ('type = "hidden"\nmargin = { type = "flat" }', ["margin.base: missing: this key is required"]),
        (
            'type = "hidden"\nmargin = { type = "flat", bsae = 2 }',
            ["margin.bsae: unknown key; did you mean 'base'?"],
        ),
        (
            'type = "kd"\ntemperature = { type = "linaer", base = 2 }',
            ["temperature.type: no schedule called 'linaer'; did you mean 'linear'?"],
        ),
        ('type = "kd"\ntemperature = { base = 2 }', ["temperature.type: missing: this key is required"]),
        (
            'type = "kd"\ntemperature = { type = "linear", base = "x", end = 3 }',
            ["temperature.end: must be <= 1: 3.0", "temperature.base: expected a number, got the string 'x'"],
        ),
        ('type = "kd"\ntemperature = { type = "flat", base = -8 }', ["temperature.base: must be > 0: -8.0"]),
        (
            'type = "kd"\nrounds = { type = "flat", base = 2 }',
            ["rounds: expected an integer, got a table"],
        ),
        (
            'type = "kd"\ntemperature = { type = "flat", base = -8 }\nrounds = 0\nweight = "x"',
            [
                "temperature.base: must be > 0: -8.0",
                "rounds: must be >= 1: 0",
                "weight: expected a number or a table, got the string 'x'",
            ],
        ),
        (
            'type = "needy"\nlow = 0.5\nepochs = 1\nhigh = { type = "flat", base = 0.1 }',
            ["high.base: must not be below low: 0.1 < 0.5"],
        ),
        ('type = "kdd"\ntemperature = { type = "flat" }', ["type: no loss called 'kdd'; did you mean 'kd'?"]),
    ],
)
def test_what_a_schedule_of_an_option_may_not_say(told, text, messages):
    assert sorted(told(text)) == sorted(messages)


def test_a_misspelt_schedule_is_found_before_anything_is_loaded(told):
    found = told('type = "kd"\ntemperature = { type = "linaer", base = 2 }', level=check_names)
    assert found == ["temperature.type: no schedule called 'linaer'; did you mean 'linear'?"]


def test_a_table_that_is_no_schedule_is_left_to_its_loss(folder, fake):
    (folder / "kd.toml").write_text(f'{HEAD}type = "hidden"\nscales = {{ type = "gelu" }}\n')
    check_names(read("kd.toml"), fake)


def test_the_place_of_a_base_that_does_not_fit(folder, fake):
    (folder / "kd.toml").write_text(HEAD + 'type = "kd"\ntemperature = { type = "flat", base = -8 }\n')
    with pytest.raises(ConfigError) as caught:
        structure(read("kd.toml"), fake)
    assert str(caught.value) == (
        "kd.toml:7:32: losses[0].temperature.base: must be > 0: -8.0\n"
        '  |\n7 | temperature = { type = "flat", base = -8 }\n  |                                ^^^^'
    )


def test_a_schedule_in_python(fake):
    made = structure_loss({"type": "kd", "temperature": {"type": "linear", "base": 8}}, fake)
    assert made.options.temperature == made.varying["temperature"].base == 8.0
    again = structure_loss({"type": "kd", "temperature": made.varying["temperature"]}, fake)
    assert again == made
    assert structure_loss({"type": "kd", "temperature": Weight(base=8.0)}, fake).varying == {}
    with pytest.raises(ConfigError) as caught:
        structure_loss({"type": "kd", "temperature": {"type": "linear", "bas": 8}}, fake)
    assert str(caught.value) == "loss 'kd': temperature.bas: unknown key; did you mean 'base'?"


def test_a_projection_by_factory(loss, folder):
    made = loss('type = "hidden"\nprojection = { factory = "zoo:Bottleneck", hidden = 64, file = "./w.bin" }')
    assert made.projection == Factory(factory="zoo:Bottleneck", arguments={"hidden": 64, "file": str(folder / "w.bin")})


@pytest.mark.parametrize(
    ("projection", "message"),
    [
        ('{ factory = "zoo.Part" }', f"projection.factory: the string 'zoo.Part' {MALFORMED}"),
        (
            '{ factory = "zoo:Part", inner = { factory = "x" } }',
            f"projection.inner.factory: the string 'x' {MALFORMED}",
        ),
        ('{ factry = "a:b" }', "projection.factry: unknown key; did you mean 'factory'? (it is required)"),
        (
            '{ factory = "a:b", student = 3 }',
            "projection.student: it is measured, and passed to the factory; leave this key out",
        ),
        ("{ factory = 3 }", "projection.factory: expected a string, got 3"),
        ('{ factory = "a:b", type = "mlp" }', "projection.type: give either type or factory, not both"),
        ("{ width = 3 }", "projection.type: missing: this key is required"),
        ("3", "projection: expected a table, got 3"),
    ],
)
def test_a_factory_that_cannot_be(told, projection, message):
    assert told(f'type = "hidden"\nprojection = {projection}') == [message]


def test_own_options_of_the_optimizer(loss):
    assert loss('type = "hidden"\noptimizer = { lr = 1e-3, betas = [0.9, 0.99] }').optimizer == {
        "lr": 1e-3,
        "betas": [0.9, 0.99],
    }
    assert loss('type = "hidden"').optimizer is None
    assert loss('type = "hidden"\noptimizer = {}').optimizer == {}


def test_all_of_it_is_written_as_it_was_read(structured, folder, fake):
    text = (
        'type = "hidden"\nstudent = ["a"]\nteacher = { big = "c" }\nmargin = { type = "linear", base = 2 }\n'
        'projection = { factory = "zoo:Part", width = 3 }\noptimizer = { lr = 0.1 }'
    )
    made = structured(HEAD + text + "\n").losses[0]
    written = write(attrs.evolve(structured(HEAD + text + "\n"), losses=[made]))
    assert "[losses.margin]\n" in written
    assert 'type = "linear"\nstart = 0.0\nend = 1.0\nbase = 2.0\n' in written
    assert '[losses.projection]\nfactory = "zoo:Part"\nwidth = 3\n' in written
    assert "[losses.optimizer]\nlr = 0.1\n" in written
    assert '[losses.teacher]\nbig = "c"\n' in written


def test_a_validator_sees_the_base(fake):
    options = attrs.make_class("Own", {"scale": positive(1.0)}, frozen=True, kw_only=True)
    options.__annotations__ = {"scale": float}

    class One(type(fake)):
        def load(self, kind, name):
            return options if kind == "losses" else super().load(kind, name)

    with pytest.raises(ConfigError, match=r"^loss 'own': scale\.base: must be > 0: 0\.0$"):
        structure_loss({"type": "own", "scale": {"type": "flat", "base": 0}}, One())
