"""`[[stages]]`: a table laid over the file, its names, its places, its paths, and the file that they are written to."""

import tomllib

import jsonschema
import pytest

from hookbrew.config import read, schema, staged, structure, write_stages
from hookbrew.errors import ConfigError, Place

BASE = """\
output = "runs/two"
student.factory = "zoo:Small"
teacher = { factory = "zoo:Big", file = "./big.bin" }
data.train.factory = "zoo:train"
train.epochs = 3

[[stages]]
name = "warm"
seed = 4

[[stages.losses]]
type = "hidden"
student = "a"
teacher = "b"

[[stages]]
train = { steps = 9 }
optimizer = { type = "SGD", momentum = 0.9 }
losses = [{ type = "kd" }]
data.train = { factory = "zoo:train", root = "./data" }
"""


@pytest.fixture
def stages(folder, fake):
    """Write a text to two.toml; its experiments by stage."""

    def run(text=BASE, sets=()):
        (folder / "two.toml").write_text(text)
        return {name: structure(document, fake) for name, document in staged(read("two.toml", sets)).items()}

    return run


def problems(call, *arguments):
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    return [str(problem).partition("\n")[0] for problem in caught.value.problems]


def test_a_stage_is_the_file_with_its_table_over_it(stages, folder):
    made = stages()
    assert list(made) == ["warm", "stage-2"]
    first, second = made.values()
    assert (first.output, second.output) == (folder / "runs/two/warm", folder / "runs/two/stage-2")
    assert (first.seed, second.seed) == (4, 0)
    assert (first.train.epochs, first.train.steps, second.train.epochs, second.train.steps) == (3, None, None, 9)
    assert [loss.type for loss in (*first.losses, *second.losses)] == ["hidden", "kd"]
    assert (first.optimizer.type, second.optimizer.type) == ("AdamW", "SGD")
    assert first.teacher == second.teacher
    assert second.data.train.arguments == {"root": f"{folder}/data"}


def test_a_file_without_stages_is_one_without_a_name(folder, good):
    (folder / "kd.toml").write_text(good)
    document = read("kd.toml")
    assert staged(document) == {"": document}


def test_the_written_file_reads_as_the_same_stages(stages):
    made = stages()
    again = stages(write_stages(made))
    assert again == made
    assert write_stages(again) == write_stages(made)


def test_an_extended_file_and_the_paths_in_it(folder, fake):
    (folder / "base").mkdir()
    (folder / "base/two.toml").write_text(BASE)
    (folder / "child.toml").write_text('extends = "base/two.toml"\nseed = 7\n')
    document = read("child.toml", ["stages[1].data.train.more=./x"])
    second = structure(staged(document)["stage-2"], fake)
    assert second.teacher.arguments["file"] == f"{folder}/base/big.bin"
    assert second.data.train.arguments == {"root": f"{folder}/base/data", "more": f"{folder}/x"}
    assert second.output == folder / "base/runs/two/stage-2"
    assert second.seed == 7
    (folder / "child.toml").write_text(
        'extends = "base/two.toml"\n[[stages]]\nname = "x"\nlosses = [{ type = "kd" }]\n'
    )
    assert list(staged(read("child.toml"))) == ["x"]  # a list replaces


def test_settings_reach_into_a_stage(stages):
    made = stages(BASE, ["stages[1].train.epochs=2", "stages[0].losses[0].norm=l1", "stages[1].optimizer={lr=3}"])
    assert (made["stage-2"].train.epochs, made["stage-2"].train.steps) == (2, None)
    assert made["warm"].losses[0].options.norm == "l1"
    assert (made["stage-2"].optimizer.lr, made["stage-2"].optimizer.arguments) == (3.0, {"momentum": 0.9})


def test_what_a_stage_drops_is_told_once_with_its_place(folder):
    (folder / "two.toml").write_text(BASE)
    documents = staged(read("two.toml", ["train.epochs=8", "optimizer={lr=2}"]))
    assert documents["warm"].dropped == []
    assert documents["stage-2"].dropped == [
        "stages[1]: train: epochs -> steps; dropped epochs (-s train.epochs=8)",
        "stages[1]: optimizer: type AdamW -> SGD; dropped lr (-s optimizer={lr=2})",
    ]


def test_a_setting_that_a_stage_says_otherwise_is_told(folder):
    (folder / "two.toml").write_text(BASE)
    documents = staged(read("two.toml", ["seed=5"]))
    assert documents["warm"].dropped == ["-s seed=5 does not reach stage 'warm', whose table has seed itself"]
    assert not any("seed" in note for note in documents["stage-2"].dropped)


def test_places_are_those_of_the_file(folder, fake):
    (folder / "two.toml").write_text(BASE.replace("train = { steps = 9 }", "train = { stepps = 9 }"))
    second = staged(read("two.toml"))["stage-2"]
    assert problems(structure, second, fake) == ["two.toml:17:11: train.stepps: unknown key; did you mean 'steps'?"]
    (folder / "two.toml").write_text(BASE.replace('losses = [{ type = "kd" }]\n', ""))
    second = staged(read("two.toml"))["stage-2"]
    assert problems(structure, second, fake) == ["two.toml:16:1: losses: missing: this key is required"]
    assert isinstance(second.locate("output"), Place)
    assert second.locate("output").line == 1


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('name = "warm"', 'name = "../x"', "[0].name: {rule}; got the string '../x'"),
        ('name = "warm"', 'name = ""', "[0].name: {rule}; got the string ''"),
        ('name = "warm"', "name = 3", "[0].name: {rule}; got 3"),
        ('name = "warm"', f'name = "{"x" * 101}"', f"[0].name: {{rule}}; got the string '{'x' * 60} ...'"),
        ('name = "warm"', 'name = "Status.json"', "[0].name: Status.json is a file of the run's folder; {other}"),
        ('name = "warm"', 'nmae = "warm"', "[0].nmae: unknown key; did you mean 'name'?"),
        (
            "train = { steps",
            'name = "WARM"\ntrain = { steps',
            "[1].name: there is a stage 'WARM' already; give this one {an}",
        ),
        ('name = "warm"', 'name = "stage-2"', "[1].name: there is a stage 'stage-2' already; give this one {an}"),
        ("seed = 4", 'output = "x"', "[0].output: {common}"),
        ("seed = 4", 'student.factory = "x:y"', "[0].student: {common}"),
    ],
)
def test_what_is_no_stage(folder, old, new, expected):
    assert BASE.count(old) == 1
    (folder / "two.toml").write_text(BASE.replace(old, new))
    words = {
        "rule": "a stage's name has up to 100 letters, digits, - _ and . and names its folder",
        "an": "another name",
        "other": "give the stage another name",
        "common": "all stages have this in common; write it above [[stages]]",
    }
    (problem,) = problems(staged, read("two.toml"))
    assert problem.partition("stages")[2] == expected.format(**words)
    assert problem.startswith("two.toml:")


@pytest.mark.parametrize(("text", "got"), [("[]", "a list"), ("3", "3"), ("[1]", "a list"), ("{ a = 1 }", "a table")])
def test_stages_are_tables(folder, text, got):
    (folder / "two.toml").write_text(f"stages = {text}\n")
    found = problems(staged, read("two.toml"))
    assert found == [f"two.toml:1:1: stages: expected tables, [[stages]]; got {got}"]


def test_an_empty_output_does_not_become_the_root_of_all_folders(stages):
    assert problems(stages, BASE.replace('"runs/two"', '""'))[0] == "two.toml:1:1: output: a path cannot be empty"


def test_a_misspelt_table(stages):
    text = BASE.replace("[[stages", "[[stage")
    assert problems(stages, text) == ["two.toml:7:1: stage: unknown key; did you mean 'stages'?"]


@pytest.fixture(scope="module")
def errors(fake):
    validator = jsonschema.Draft202012Validator(schema(fake))
    return lambda text: [error.message for error in validator.iter_errors(tomllib.loads(text))]


def test_the_schema(errors):
    assert errors(BASE) == []
    assert errors(BASE.replace("seed = 4", "sed = 4")) == [
        "Additional properties are not allowed ('sed' was unexpected)"
    ]
    assert errors(BASE.replace("steps = 9", "steps = 0")) == ["0 is less than the minimum of 1"]
    assert errors(BASE.replace('output = "runs/two"', "")) == ["'output' is a required property"]
    assert errors(BASE.replace("seed = 4", 'output = "x"')) == [
        "Additional properties are not allowed ('output' was unexpected)"
    ]
