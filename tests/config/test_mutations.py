"""Whatever is done to a file, the answer is an experiment or a ConfigError with places."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbrew.config import check_names, origin_lines, read, structure, write
from hookbrew.errors import ConfigError, Place

BITS = [
    "[",
    "]",
    "{",
    "}",
    "=",
    '"',
    "'",
    "\n",
    ".",
    ",",
    "#",
    "\\",
    '"""',
    "[[",
    "]]",
    "0",
    "-1",
    "true",
    "nan",
    "ä",
    "\t",
]
VALUES = ["3", "3.5", '"x"', "true", "[]", "[1]", "{}", '{type = "kd"}', "[{}]", "2020-01-01", "inf", '""', '"linear"']


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("mutated") / "kd.toml"


def problems_of(file, fake, sets):
    """What both levels say about a file."""
    found = []
    for level in (check_names, structure):
        try:
            level(read(file, sets), fake)
        except ConfigError as error:
            found += error.problems or ["an error without problems"]
    return found


def answered(file, text, fake, sets=()):
    """Read and structure a text; whether it was taken."""
    file.write_text(text, encoding="utf-8", newline="")
    problems = problems_of(file, fake, sets)
    for problem in problems:
        assert problem.message
        assert problem.place
        if isinstance(problem.place, Place):
            assert 1 <= problem.place.line <= text.count("\n") + 1
            assert 1 <= problem.place.column <= len(problem.place.text) + 1
    if not problems:
        document = read(file, sets)
        made = structure(document, fake)
        assert list(origin_lines(document, made))
        file.write_text(write(made), encoding="utf-8", newline="")
        # nan differs from itself, so texts are compared
        assert write(structure(read(file), fake)) == write(made)
    return not problems


def test_the_file_itself_is_taken(file, fake, good):
    assert answered(file, good, fake)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_changed_characters(file, fake, good, data):
    text = good
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 3))
        text = text[:at] + data.draw(st.sampled_from(["", *BITS])) + text[at + cut :]
    answered(file, text, fake)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_changed_lines(file, fake, good, data):
    lines = good.split("\n")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(lines) - 1))
        change = data.draw(st.sampled_from(["drop", "twice", "swap", "value", "key"]))
        other = data.draw(st.integers(0, len(lines) - 1))
        key, equals, value = lines[at].partition(" = ")
        if change == "drop":
            lines[at] = ""
        elif change == "twice":
            lines.insert(other, lines[at])
        elif change == "swap":
            lines[at], lines[other] = lines[other], lines[at]
        elif change == "value" and equals:
            lines[at] = f"{key} = {data.draw(st.sampled_from(VALUES))}"
        elif equals:
            lines[at] = f"{data.draw(st.sampled_from(['type', 'factory', 'weight', 'x.y', 'zz']))} = {value}"
    answered(file, "\n".join(lines), fake)


KEYS = [
    "seed",
    "train",
    "train.epochs",
    "losses",
    "losses[0]",
    "losses[1].projection",
    "losses[0].weight.type",
    "optimizer",
    "data.train.factory",
    "output",
    "callbacks[0].folders",
    "teacher",
    "lr_schedule.type",
    "plugins",
    "new.x",
]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from([*VALUES, "flat", "kd", "a:b", ""])), max_size=3))
def test_changed_settings(file, fake, good, sets):
    answered(file, good, fake, [f"{key}={value}" for key, value in sets])
