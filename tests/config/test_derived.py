"""`[student]` with `from`: what may be said, what is refused and where, and that it is written as it was read."""

import tomllib

import jsonschema
import pytest

from hookbrew.config import Derived, Factory, read, schema, structure, write
from hookbrew.config.derived import CHOICES, Width
from hookbrew.errors import ConfigError, Place
from hookbrew.surgery import choice

HEAD = """\
output = "o"
train.epochs = 1
data.train.factory = "a:b"
teacher.factory = "a:b"
losses = [{ type = "kd" }]
"""

STUDENT = """
[student]
from = "teachers.large"
width = { hidden = 8, by = "importance" }
vocabulary = [3, 1, 2]
batches = 2

[student.keep]
"encoder.layer" = [0, 2]
"decoder.layer" = "uniform:3"

[student.rank]
"embed" = 4
"""


@pytest.fixture
def made(folder, fake):
    """made(text, *sets): the experiment of HEAD and a text."""

    def run(text, *sets):
        (folder / "kd.toml").write_text(HEAD + text)
        return structure(read("kd.toml", sets), fake)

    return run


def test_a_whole_table(made):
    assert made(STUDENT).student == Derived(
        source="teachers.large",
        keep={"encoder.layer": [0, 2], "decoder.layer": "uniform:3"},
        width=Width(hidden=8, by="importance"),
        vocabulary=[3, 1, 2],
        rank={"embed": 4},
        batches=2,
    )


def test_it_is_written_as_it_was_read(made, folder, fake):
    experiment = made(STUDENT)
    (folder / "again.toml").write_text(write(experiment))
    assert structure(read("again.toml", []), fake) == experiment
    assert tomllib.loads(write(made('student.from = "teacher"')))["student"] == {
        "from": "teacher",
        "keep": {},
        "rank": {},
        "batches": 8,
    }


def test_settings_of_the_command_line(made):
    sets = ["student.keep={ layers = [1] }", 'student.keep."encoder.layer"="last:2"', "student.width.hidden=8"]
    student = made('student.from = "teacher"', *sets).student
    assert student == Derived(source="teacher", keep={"layers": [1], "encoder.layer": "last:2"}, width=Width(hidden=8))


def test_a_factory_gives_way_and_comes_back(made, folder):
    assert made('student = { factory = "a:b", width = 8 }', "student.from=teacher").student == Derived(source="teacher")
    text = 'student = { from = "teacher", keep = { a = [1] } }'
    assert made(text, "student.factory=a:b").student == Factory(factory="a:b")
    document = read("kd.toml", ["student.factory=a:b"])
    (note,) = document.dropped
    assert note.startswith("student: from -> factory; dropped keep (kd.toml:")


FAULTS = {
    'from = "teacher"\nkep = {}': ("student.kep", "unknown key; did you mean 'keep'?", 8),
    'form = "teacher"': ("student.form", "unknown key; did you mean 'from'? (it is required)", 7),
    "keep = { a = [1] }": ("student.from", "missing: this key is required", 6),
    'from = "teacher"\nfactory = "a:b"': ("student.from", "give either from or factory, not both", 7),
    'from = "techer"': (
        "student.from",
        "is the place of a teacher, 'teacher' or 'teachers.NAME': 'techer'",
        7,
    ),
    'from = "teacher"\nkeep = [1]': ("student.keep", "expected a table, got a list", 8),
    'from = "teacher"\nkeep = { a = 1 }': ("student.keep.a", "expected a list or a string, got 1", 8),
    'from = "teacher"\nkeep = { a = [1, "2"] }': ("student.keep.a[1]", "expected an integer, got the string '2'", 8),
    'from = "teacher"\nkeep = { a = [] }': ("student.keep.a", "names no layer: write one or more", 8),
    'from = "teacher"\nkeep = { a = [2, 1, 2] }': ("student.keep.a", "layer 2 is named twice", 8),
    'from = "teacher"\nkeep = { a = "unifrom:3" }': (
        "student.keep.a",
        "no choice of layers is called 'unifrom'; did you mean 'uniform'?",
        8,
    ),
    'from = "teacher"\nkeep = { a = "uniform" }': (
        "student.keep.a",
        "'uniform' is no choice of layers; write a list of numbers, or a name with how many: 'uniform:3'",
        8,
    ),
    'from = "teacher"\nwidth = { hiden = 8 }': ("student.width.hiden", "unknown key; did you mean 'hidden'?", 8),
    'from = "teacher"\nwidth = { ffn = 0 }': ("student.width.ffn", "must be >= 1: 0", 8),
    'from = "teacher"\nwidth = { by = "size" }': (
        "student.width.by",
        "the string 'size' is not a choice; did you mean 'slice'?",
        8,
    ),
    'from = "teacher"\nrank = { a = 0 }': ("student.rank", "must be >= 1: a is 0", 8),
    'from = "teacher"\nvocabulary = []': (
        "student.vocabulary",
        "names nothing: write one, or leave this key out",
        8,
    ),
    'from = "teacher"\nvocabulary = { a = 1 }': (
        "student.vocabulary",
        "is a list of ids, or a table with a `factory` that gives it",
        8,
    ),
    'from = "teacher"\nbatches = 0': ("student.batches", "must be >= 1: 0", 8),
}


@pytest.mark.parametrize("text", FAULTS)
def test_faults_have_a_place(made, text):
    with pytest.raises(ConfigError) as caught:
        made(f"[student]\n{text}")
    (problem,) = caught.value.problems
    path, message, line = FAULTS[text]
    assert (problem.path, problem.message) == (path, message)
    assert isinstance(problem.place, Place)
    assert problem.place.line == line
    assert problem.place.column >= 1


def test_all_faults_are_told_together(made):
    with pytest.raises(ConfigError) as caught:
        made('student = { from = "techer", keep = { a = [], b = "x:1" }, width = { ffn = 0 }, batches = 0 }\nsed = 1')
    assert {problem.path for problem in caught.value.problems} == {
        "student.from",
        "student.keep.a",
        "student.keep.b",
        "student.width.ffn",
        "student.batches",
        "sed",
    }


@pytest.fixture(scope="module")
def errors(fake):
    validator = jsonschema.Draft202012Validator(schema(fake))
    return lambda text: [error.message for error in validator.iter_errors(tomllib.loads(HEAD + text))]


def test_the_schema(errors):
    assert errors(STUDENT) == []
    assert errors('student.from = "teacher"') == []
    assert errors('student.factory = "a:b"\nstudent.width = 3') == []
    assert errors("student.width.hidden = 3") != []
    assert errors('student = { from = "teacher", kep = {} }') != []
    assert errors('student = { from = "teacher", keep = { a = ["1"] } }') != []
    assert errors('student = { from = "teacher", batches = 0 }') != []


def test_the_choices_are_those_that_surgery_knows():
    assert CHOICES == choice.CHOICES
