"""`[teachers.NAME]`, `[merge]` and `[tasks.NAME]`: what may be said, and mistakes at their places."""

import tomllib

import jsonschema
import pytest

from hookbrew.config import read, schema, structure_merge, write
from hookbrew.errors import ConfigError

HEAD = 'output = "o"\nstudent.factory = "zoo:Small"\ntrain.epochs = 1\n'
TEACHERS = (
    HEAD
    + """\
data.train.factory = "zoo:train"
losses = [{ type = "kd" }]

[teachers.big]
factory = "zoo:Big"
file = "./big.bin"

[teachers.wide-2]
factory = "zoo:Wide"

[merge]
by = "probabilities"
weights = { big = 2 }
"""
)
TASKS = (
    HEAD
    + """\
train.tau = 0.5

[tasks.topic]
teacher = { factory = "zoo:Big", file = "./big.bin" }
data.train.factory = "zoo:train"
losses = [{ type = "kd", weight = { type = "linear", base = 2 } }]

[tasks.mood.teachers]
big = { factory = "zoo:Big" }
small = { factory = "zoo:Small" }

[tasks.mood]
merge.confidence = "entropy"
data = { train = { factory = "zoo:train", root = "./mood" }, labels = "mood" }
losses = [{ type = "hidden", student = "a", teacher = { big = "b", small = "c" }, table = "x.bin" }, { type = "kd" }]
"""
)


@pytest.fixture
def problems(structured):
    """The first lines of what is wrong with a text."""

    def run(text, sets=()):
        with pytest.raises(ConfigError) as caught:
            structured(text, sets)
        return [str(problem).partition("\n")[0] for problem in caught.value.problems]

    return run


def test_teachers(structured, folder):
    made = structured(TEACHERS)
    assert made.teachers["big"].arguments == {"file": f"{folder}/big.bin"}
    assert list(made.teachers) == ["big", "wide-2"]
    assert (made.merge.by, made.merge.weights) == ("probabilities", {"big": 2.0})
    assert list(made.parts) == [""]
    assert made.parts[""].teachers == made.teachers


def test_tasks(structured, folder):
    made = structured(TASKS)
    assert list(made.parts) == ["topic", "mood"]
    assert made.tasks["topic"].teacher.arguments == {"file": f"{folder}/big.bin"}
    assert made.tasks["mood"].data.train.arguments == {"root": f"{folder}/mood"}
    assert made.tasks["mood"].losses[0].options.table == folder / "x.bin"
    assert made.tasks["topic"].losses[0].weight.base == 2
    assert (made.data, made.losses) == (None, None)


@pytest.mark.parametrize("text", [TEACHERS, TASKS])
def test_the_written_file_reads_as_the_same(structured, text):
    made = structured(text)
    assert structured(write(made)) == made


def test_one_displaces_several_and_back(structured, folder):
    """A later layer cannot take a key away, so it says the other."""
    (folder / "base.toml").write_text(TEACHERS)
    one = 'extends = "base.toml"\nteacher.factory = "zoo:One"\n'
    made = structured(one)
    assert (made.teacher.factory, made.teachers, made.merge) == ("zoo:One", None, None)
    assert read("kd.toml").dropped == [
        "teachers -> teacher; dropped teachers (base.toml:7)",
        "merge -> teacher; dropped merge (base.toml:14)",
    ]
    (folder / "base.toml").write_text(one.replace("base", "first"))
    (folder / "first.toml").write_text(TEACHERS)
    made = structured('extends = "base.toml"\nteachers = { a = { factory = "zoo:A" } }\n')
    assert (made.teacher, list(made.teachers)) == (None, ["a"])


def test_settings_displace_in_tasks_too(structured):
    made = structured(TASKS, ["tasks.topic.teachers.a.factory=zoo:A"])
    assert (made.tasks["topic"].teacher, list(made.tasks["topic"].teachers)) == (None, ["a"])


NAME = "a teacher's name has letters, digits, - and _, and is not 'student'"
EACH = "there are tasks, and each has its own; write it into [tasks.NAME]"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[teachers.big]", "[teachers.student]", [f"7:1: teachers.student: {NAME}", "16:13: merge.weights.big: {no}"]),
        ("[teachers.wide-2]", '[teachers."a.b"]', [f'11:1: teachers."a.b": {NAME}']),
        ("big = 2", "bg = 2", ["16:13: merge.weights.bg: there is no such teacher; did you mean 'big'?"]),
        ("big = 2", "big = 0", ["16:1: merge.weights: must be > 0: big is 0.0"]),
        ('"probabilities"', '"logit"', ["15:1: merge.by: the string 'logit' is not a choice; did you mean 'logits'?"]),
        ('factory = "zoo:Wide"', 'factory = "zoo"', ["12:1: teachers.wide-2.factory: {module}"]),
        ("weights =", "weight =", ["16:1: merge.weight: unknown key; did you mean 'weights'?"]),
        ("train.epochs = 1", "train = { epochs = 1, tau = 1 }", ["3:23: train.tau: there are no tasks to draw from"]),
    ],
)
def test_mistakes_with_teachers(problems, old, new, expected):
    assert TEACHERS.count(old) == 1
    words = {
        "no": "there is no such teacher; one of: student, wide-2",
        "module": "the string 'zoo' is not module:attribute, like transformers:AutoModel.from_pretrained",
    }
    assert problems(TEACHERS.replace(old, new)) == [f"kd.toml:{line.format(**words)}" for line in expected]


def test_a_teacher_beside_teachers(problems):
    text = TEACHERS.replace("losses = ", 'teacher.factory = "zoo:One"\nlosses = ')
    assert problems(text) == [
        "kd.toml:8:1: teachers: there is a teacher too; give it a name among these, or leave one out"
    ]


def test_nothing_to_merge(problems):
    only = TEACHERS[: TEACHERS.index("[teachers.wide-2]")] + "[merge]\n"
    message = "merge: there are no several teachers to merge; name them with [teachers.NAME]"
    assert problems(only) == [f"kd.toml:11:1: {message}"]
    assert problems(TASKS.replace("[tasks.mood]", "[tasks.topic.merge]\n[tasks.mood]")) == [
        f"kd.toml:15:1: tasks.topic.{message}"
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[tasks.mood]\n", "[tasks.mood]\ndat = 1\n", ["16:1: tasks.mood.dat: unknown key; did you mean 'data'?"]),
        ('labels = "mood"', 'lables = "mood"', ["17:62: tasks.mood.data.lables: unknown key; did you mean 'labels'?"]),
        ("train.tau = 0.5", "train.tua = 0.5", ["4:1: train.tua: unknown key; did you mean 'tau'?"]),
        ("train.tau = 0.5", "data.train.factory = 'a:b'", [f"4:1: data: {EACH}"]),
        ("train.tau = 0.5", "losses = [{ type = 'kd' }]", [f"4:1: losses: {EACH}"]),
        ("train.tau = 0.5", "teacher.factory = 'a:b'", [f"4:1: teacher: {EACH}"]),
        ("train.tau = 0.5", "merge.by = 'logits'", [f"4:1: merge: {EACH}"]),
        ("[tasks.topic]", '[tasks."a/b"]', ['6:1: tasks."a/b": a task\'s name has letters, digits, - and _']),
        ("[tasks.topic]", '[tasks."a.b"]', ['6:1: tasks."a.b": a task\'s name has letters, digits, - and _']),
        ("[tasks.topic]", '[tasks.""]', ['6:1: tasks."": a task\'s name has letters, digits, - and _']),
        ("small = {", "student = {", [f"13:1: tasks.mood.teachers.student: {NAME}"]),
        (
            'train.factory = "zoo:train"\n',
            "batch_size = 2\n",
            ["8:1: tasks.topic.data.train: missing: this key is required"],
        ),
        ("[tasks.topic]", "[tasks]\nx = 3\n[tasks.topic]", ["7:1: tasks.x: expected a table, got 3"]),
    ],
)
def test_mistakes_with_tasks(problems, old, new, expected):
    assert TASKS.count(old) == 1
    assert problems(TASKS.replace(old, new)) == [f"kd.toml:{line}" for line in expected]


def test_a_misspelt_table_of_tasks_is_one_mistake(problems):
    assert problems(TASKS.replace("[tasks", "[task")) == ["kd.toml:6:1: task: unknown key; did you mean 'tasks'?"]


def test_the_python_call():
    assert structure_merge({"by": "logits", "weights": {"a": 1}}, ["a", "b"]).weights == {"a": 1.0}
    for table, teachers, message in [
        ({"weights": {"aa": 1}}, ["a", "b"], "t.merge.weights.aa: there is no such teacher; did you mean 'a'?"),
        ({"bye": 1}, ["a", "b"], "t.merge.bye: unknown key; did you mean 'by'?"),
        ({}, ["student", "b"], f"t.teachers.student: {NAME}"),
        ({"by": "logits"}, [], "t.merge: there are no several teachers to merge; name them with [teachers.NAME]"),
    ]:
        with pytest.raises(ConfigError) as caught:
            structure_merge(table, teachers, "t.")
        assert str(caught.value) == message


@pytest.fixture(scope="module")
def errors(fake):
    validator = jsonschema.Draft202012Validator(schema(fake))
    return lambda text: [error.message for error in validator.iter_errors(tomllib.loads(text))]


def test_the_schema(errors):
    assert errors(TEACHERS) == errors(TASKS) == []
    for text, old, new, message in [
        (TEACHERS, 'factory = "zoo:Wide"', "", "'factory' is a required property"),
        (TEACHERS, "by =", "bye =", "Additional properties are not allowed ('bye' was unexpected)"),
        (TASKS, 'labels = "mood"', "lables = 1", "Additional properties are not allowed ('lables' was unexpected)"),
        (TASKS, "train.tau = 0.5", "train.tau = -1", "-1 is less than the minimum of 0.0"),
        (TASKS, "train.tau = 0.5", "merge = {}", "False schema does not allow {}"),
        (TASKS, 'data.train.factory = "zoo:train"', "", "'data' is a required property"),
    ]:
        assert errors(text.replace(old, new)) == [message]
