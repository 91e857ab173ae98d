"""The JSON Schema: valid files pass, faults of types and keys do not."""

import tomllib

import jsonschema
import pytest

from hookbrew.config import schema


@pytest.fixture(scope="module")
def errors(fake):
    made = schema(fake)
    jsonschema.Draft202012Validator.check_schema(made)
    validator = jsonschema.Draft202012Validator(made)
    return lambda text: [error.message for error in validator.iter_errors(tomllib.loads(text))]


HEAD = 'output = "o"\nstudent.factory = "a:b"\ndata.train.factory = "a:b"\n'
KD = 'losses = [{type = "kd"}]\n'
FULL = HEAD + "train.epochs = 1\n"


def test_a_good_file_passes(errors, good):
    assert errors(good) == []
    assert errors(HEAD + "train.steps = 1\n" + KD) == []


@pytest.mark.parametrize(
    "text",
    [
        'losses = [{type = "kd", temperature = 2, layers = [1], fused = true, weight = 2.5, mask = "m"}]',
        'losses = [{type = "kd", weight = {type = "flat", base = 2}}]',
        'losses = [{type = "kd", temperature = {type = "linear", base = 8, start = 0.5}}]',
        'losses = [{type = "hidden", student = ["a", "b"], teacher = {big = ["a", "b"], small = "c"}, labels = ["a"]}]',
        'losses = [{type = "hidden", projection = {factory = "a:b", width = 3}}]',
        'losses = [{type = "hidden", optimizer = {lr = 1, betas = [0.1, 0.2]}}]',
        'losses = [{type = "hidden", projection = "mlp", margin = 1, table = "x", scales = {a = 1}}]',
        'losses = [{type = "hidden", projection = {type = "mlp", width = 3}}]',
        'losses = [{type = "needy", epochs = 1, many = [1]}]',
        KD + 'lr_schedule = {type = "linear", start = 1}\ncallbacks = [{type = "note"}]',
        KD + 'optimizer = {lr = 1, momentum = 0.9}\nteacher = {factory = "a:b", x = {y = 1}}',
        KD + "data.pad = {x = 1.5, y = 1}",
    ],
)
def test_what_may_be_said(errors, text):
    assert errors(FULL + text) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'losses' is a required property"),
        (KD + "sed = 1", "Additional properties are not allowed ('sed' was unexpected)"),
        (KD + 'seed = "1"', "'1' is not of type 'integer'"),
        (KD + "seed = -1", "-1 is less than the minimum of 0"),
        (KD + 'optimizer = "adam"', "'adam' is not of type 'object'"),
        (KD + "optimizer.lr = 0", "0 is less than or equal to the minimum of 0"),
        ('losses = "kd"', "'kd' is not of type 'array'"),
        ("losses = []", "[] should be non-empty"),
        ("losses = [{}]", "'type' is a required property"),
        ('losses = [{type = "kdd"}]', "'kdd' is not one of ['hidden', 'kd', 'needy']"),
        (
            'losses = [{type = "kd", temprature = 2}]',
            "Additional properties are not allowed ('temprature' was unexpected)",
        ),
        ('losses = [{type = "kd", temperature = "hot"}]', "'hot' is not of type 'number'"),
        ('losses = [{type = "kd", temperature = true}]', "True is not of type 'number'"),
        ('losses = [{type = "kd", temperature = -2}]', "-2 is less than or equal to the minimum of 0"),
        ('losses = [{type = "kd", fused = "no"}]', "'no' is not of type 'boolean'"),
        ('losses = [{type = "kd", name = 5}]', "5 is not of type 'string'"),
        ('losses = [{type = "kd", rounds = 3.7}]', "3.7 is not of type 'integer'"),
        ('losses = [{type = "kd", metric = "l3"}]', "'l3' is not one of ['cosine', 'l2']"),
        ('losses = [{type = "kd", mask = 3}]', "3 is not of type 'boolean', 'string'"),
        ('losses = [{type = "needy"}]', "'epochs' is a required property"),
        ('losses = [{type = "hidden", norm = "l3"}]', "'l3' is not one of ['l1', 'l2']"),
        ('losses = [{type = "hidden", projection = "mpl"}]', "'mpl' is not one of ['linear', 'mlp']"),
        (
            'losses = [{type = "hidden", projection = {type = "mlp", w = 1}}]',
            "Additional properties are not allowed ('w' was unexpected)",
        ),
        ('losses = [{type = "kd", weight = "x"}]', "'x' is not of type 'number', 'object'"),
        (
            'losses = [{type = "kd", weight = {type = "flat", x = 2}}]',
            "Additional properties are not allowed ('x' was unexpected)",
        ),
        ('losses = [{type = "kd", weight = {base = 2}}]', "'type' is a required property"),
        ('losses = [{type = "kd", temperature = {base = 2}}]', "'type' is a required property"),
        ('losses = [{type = "kd", temperature = {type = "liner"}}]', "'liner' is not one of ['flat', 'linear']"),
        ('losses = [{type = "kd", rounds = {type = "linear"}}]', "is not of type 'integer'"),
        ('losses = [{type = "hidden", margin = {type = "linear", bse = 2}}]', "('bse' was unexpected)"),
        ('losses = [{type = "hidden", student = 3}]', "3 is not valid under any of the given schemas"),
        ('losses = [{type = "hidden", teacher = {big = 3}}]', "is not valid under any of the given schemas"),
        ('losses = [{type = "hidden", projection = {factory = "a.b"}}]', "'a.b' does not match '^[^:]+:[^:]+$'"),
        ('losses = [{type = "hidden", optimizer = 3}]', "3 is not of type 'object'"),
        (KD + "lr_schedule = {start = 1}", "'type' is a required property"),
        (KD + 'teacher.x = "a"', "'factory' is a required property"),
        (KD + 'teacher.factory = "a.b"', "'a.b' does not match '^[^:]+:[^:]+$'"),
        (KD + "data.batch_size = 0", "0 is less than the minimum of 1"),
        (KD + "train.steps = 3", "{'required': ['steps']}"),
        (KD + "extends = 3", "3 is not of type 'string', 'array'"),
    ],
)
def test_what_may_not_be_said(errors, text, message):
    assert any(message in error for error in errors(FULL + text))


def test_a_run_without_length(errors):
    assert errors(HEAD + KD + "[train]") == ["'steps' is a required property"]


def test_a_file_that_extends_another_may_leave_things_out(errors):
    assert errors('extends = "a.toml"\ntrain.accumulate = 2\nlr_schedule.end = 0.5\nteacher.x = 1\n') == []
    assert errors('extends = "a.toml"\nlosses = [{type = "needy"}]\n') == ["'epochs' is a required property"]
    assert errors('extends = "a.toml"\nsed = 1\n') == ["Additional properties are not allowed ('sed' was unexpected)"]


def test_documentation_and_defaults_are_in_it(fake):
    made = schema(fake)
    assert made["properties"]["seed"] == {
        "type": "integer",
        "minimum": 0,
        "default": 0,
        "description": "Fixes initial weights, order of samples, augmentation and dropout.",
    }
    branches = made["properties"]["losses"]["items"]["allOf"]
    (kd,) = [branch["then"] for branch in branches if branch["if"]["properties"]["type"]["const"] == "kd"]
    assert kd["properties"]["temperature"] == {
        "type": ["number", "object"],
        "exclusiveMinimum": 0,
        "default": 4.0,
        "description": "Softens both distributions.",
        "if": {"type": "object"},
        "then": {"$ref": "#/$defs/schedule"},
    }
    assert kd["properties"]["type"] == {"description": "Soft targets."}


def test_a_broken_component_does_not_break_the_schema(fake):
    class Broken(type(fake)):
        def load(self, kind, name):
            raise ImportError(name)

    made = schema(Broken())
    jsonschema.Draft202012Validator(made).validate(tomllib.loads(FULL + 'losses = [{type = "kd", anything = 1}]'))
