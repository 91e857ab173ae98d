"""Every kind of wrong value, with its message."""

from pathlib import Path
from typing import Any, Literal

import attrs
import pytest

from hookbrew.config.faults import Mismatch, faults
from hookbrew.config.keys import dotted
from hookbrew.config.strict import converter
from hookbrew.errors import ConfigError
from hookbrew.options import at_least, choice, options, positive

# the table of messages in the reference: TOML of a whole file, and what is said about it
HEAD = 'output = "o"\nstudent.factory = "a:b"\ndata.train.factory = "a:b"\n'
TABLE = [
    ('train.epochs = 1\nlosses = [{type = "needy"}]', "losses[0].epochs: missing: this key is required"),
    ('train.epochs = "three"\nlosses = [{type = "kd"}]', "train.epochs: expected an integer, got the string 'three'"),
    ('train.epochs = "3"\nlosses = [{type = "kd"}]', "train.epochs: expected an integer, got the string '3'"),
    ('train.epochs = 3.7\nlosses = [{type = "kd"}]', "train.epochs: expected an integer, got 3.7"),
    ('train.epochs = true\nlosses = [{type = "kd"}]', "train.epochs: expected an integer, got true"),
    ('train.epochs = 1\nlosses = [{type = "kd", name = 5}]', "losses[0].name: expected a string, got 5"),
    (
        'train.epochs = 1\nlosses = [{type = "kd", fused = "no"}]',
        "losses[0].fused: expected true or false, got the string 'no'",
    ),
    (
        'train.epochs = 1\nlosses = [{type = "needy", epoch = 2}]',
        "losses[0].epoch: unknown key; did you mean 'epochs'? (it is required)",
    ),
    (
        'train.epochs = 1\nlosses = [{type = "kd"}, {type = "kd", temprature = 2}]',
        "losses[1].temprature: unknown key; did you mean 'temperature'?",
    ),
    (
        'train.epochs = 1\nlosses = [{type = "kd"}, {type = "kd", wieght = 50}]',
        "losses[1].wieght: unknown key; did you mean 'weight'?",
    ),
    (
        'train.epochs = 1\nlosses = [{type = "kd"}, {type = "kd", temperature = "hot"}]',
        "losses[1].temperature: expected a number, got the string 'hot'",
    ),
    (
        'train.epochs = 1\noptimizer = "adam"\nlosses = [{type = "kd"}]',
        "optimizer: expected a table, got the string 'adam'",
    ),
    ('train.epochs = 1\nlosses = "kd"', "losses: expected a list, got the string 'kd'"),
    ('train.epochs = 0\nlosses = [{type = "kd"}]', "train.epochs: must be >= 1: 0"),
    (
        'train.epochs = 1\nlosses = [{type = "kd"}, {type = "kd", temperature = -2}]',
        "losses[1].temperature: must be > 0: -2.0",
    ),
    ('train.epochs = 1\nlosses = [{type = "kdd"}]', "losses[0].type: no loss called 'kdd'; did you mean 'kd'?"),
    (
        'train.epochs = 1\nlosses = [{type = "kd", metric = "l3"}]',
        "losses[0].metric: the string 'l3' is not a choice; one of: cosine, l2",
    ),
    (
        'train.epochs = 1\nlosses = [{type = "hidden", pair = [1, 2, 3]}]',
        "losses[0].pair: expected a list of 2, got 3",
    ),
    ("train.epochs = 1\nlosses = []", "losses: length must be >= 1: 0"),
]


@pytest.mark.parametrize(("text", "expected"), TABLE)
def test_the_table_of_messages(structured, text, expected):
    with pytest.raises(ConfigError) as caught:
        structured(HEAD + text + "\n")
    (problem,) = caught.value.problems
    assert f"{problem.path}: {problem.message}" == expected
    assert problem.place.line > 3


@attrs.frozen
class Inner:
    a: int
    b: str = "b"


def told(hint, value):
    conv = converter()
    try:
        return conv.structure(value, hint)
    except Exception as error:
        return [(dotted(keys), message) for keys, message in faults(error)]


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (float, 1, 1.0),
        (float, 1e-3, 0.001),
        (Path, "a/b", Path("a/b")),
        (Path, Path("a"), Path("a")),
        (list[int], [1, 2], [1, 2]),
        (list[int], (1, 2), [1, 2]),
        (list, [1, "a"], [1, "a"]),
        (list[list[str]], [["a"], []], [["a"], []]),
        (dict[str, float], {"a": 1}, {"a": 1.0}),
        (dict, {"a": [1]}, {"a": [1]}),
        (tuple[int, ...], [1, 2, 3], (1, 2, 3)),
        (tuple[int, str], [1, "a"], (1, "a")),
        (int | float, 1, 1),
        (int | float, 1.5, 1.5),
        (float | int, 2, 2),
        (bool | str, True, True),
        (bool | str, "key", "key"),
        (int | None, 3, 3),
        (int | None, None, None),
        (int | list[int], [1], [1]),
        (Literal["all"] | int, "all", "all"),
        (Path | None, "x", Path("x")),
        (Literal[1, "a"], 1, 1),
        (Inner | str, {"a": 1}, Inner(1)),
        (Inner | str, "a", "a"),
        (Inner, Inner(2), Inner(2)),
        (list[Inner], [{"a": 1}], [Inner(1)]),
        (Any, {"x": [1]}, {"x": [1]}),
    ],
)
def test_what_fits_is_taken(hint, value, expected):
    made = told(hint, value)
    assert made == expected
    assert type(made) is type(expected)


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (bool, 1, [("", "expected true or false, got 1")]),
        (int, 3.0, [("", "expected an integer, got 3.0")]),
        (float, True, [("", "expected a number, got true")]),
        (float, "1e-3", [("", "expected a number, got the string '1e-3'")]),
        (str, ["a"], [("", "expected a string, got a list")]),
        (str, {"a": 1}, [("", "expected a string, got a table")]),
        (str, None, [("", "expected a string, got nothing")]),
        (int, "x" * 100, [("", f"expected an integer, got the string '{'x' * 60} ...'")]),
        (int, object, [("", "expected an integer, got a type")]),
        (Path, "", [("", "a path cannot be empty")]),
        (Path, "a\0", [("", "a path cannot hold a null character")]),
        (Path, 3, [("", "expected a path, got 3")]),
        (list[int], "12", [("", "expected a list, got the string '12'")]),
        (
            list[int],
            [1, "2", 3.5],
            [("[1]", "expected an integer, got the string '2'"), ("[2]", "expected an integer, got 3.5")],
        ),
        (
            dict[str, float],
            {"a": "x", "b": 1, "c d": True},
            [("a", "expected a number, got the string 'x'"), ('"c d"', "expected a number, got true")],
        ),
        (dict[str, int], [1], [("", "expected a table, got a list")]),
        (tuple[int, ...], [1, "x"], [("[1]", "expected an integer, got the string 'x'")]),
        (tuple[int, str], [1, 2], [("[1]", "expected a string, got 2")]),
        (tuple[int, str], [1], [("", "expected a list of 2, got 1")]),
        (bool | str, 3, [("", "expected true or false or a string, got 3")]),
        (int | float, True, [("", "expected an integer or a number, got true")]),
        (int | None, "x", [("", "expected an integer, got the string 'x'")]),
        (int | list[int], ["x"], [("[0]", "expected an integer, got the string 'x'")]),
        (Literal["all"] | int, "al", [("", "expected an integer or the string 'all', got the string 'al'")]),
        (Literal[1, "a"], True, [("", "true is not a choice; one of: 1, a")]),
        (Literal["adam", "sgd"], "adan", [("", "the string 'adan' is not a choice; did you mean 'adam'?")]),
        (Inner, "a", [("", "expected a table, got the string 'a'")]),
        (
            list[Inner],
            [{"b": 3}, {"a": "x", "c": 1}],
            [
                ("[0].a", "missing: this key is required"),
                ("[0].b", "expected a string, got 3"),
                ("[1].c", "unknown key; one of: a, b"),
                ("[1].a", "expected an integer, got the string 'x'"),
            ],
        ),
    ],
)
def test_what_does_not_fit_is_told(hint, value, expected):
    assert told(hint, value) == expected


@options
class Checked:
    low: float = positive(1.0)
    high: float = positive(2.0)
    word: str = choice("red", "green", default="red")
    size: int | None = at_least(1, None)
    code: str = attrs.field(default="a1", validator=attrs.validators.matches_re("[a-z][0-9]"))

    @high.validator
    def _ordered(self, attribute, value):
        if value < self.low:
            raise ValueError(f"'high' must not be below low, {self.low}")


def test_every_failed_check_of_a_table_is_told():
    assert told(Checked, {"low": 0, "word": "gren", "size": 0, "code": "1a"}) == [
        ("low", "must be > 0: 0.0"),
        ("word", "the string 'gren' is not a choice; did you mean 'green'?"),
        ("size", "must be >= 1: 0"),
        ("code", "must match regex '[a-z][0-9]' ('1a' doesn't)"),
    ]


def test_a_check_of_two_fields_is_told_at_its_field():
    assert told(Checked, {"low": 3}) == [("high", "must not be below low, 3.0")]
    assert told(Checked, {"size": 3}) == Checked(size=3)


@options
class Odd:
    a: int = 1

    def __attrs_post_init__(self):
        raise {1: KeyError("gone"), 2: ValueError("1 or 2 only")}[self.a]


def test_an_error_of_the_class_itself_is_told_at_its_table():
    assert told(Odd, {}) == [("", "KeyError: gone")]
    assert told(list[Odd], [{"a": 2}]) == [("[0]", "1 or 2 only")]


def test_several_faults_of_one_table():
    assert told(Inner, {"aa": 1, "d": 2}) == [
        ("aa", "unknown key; did you mean 'a'? (it is required)"),
        ("d", "unknown key; one of: a, b"),
    ]
    assert told(Inner, {"bb": 1, "d": "x"}) == [
        ("bb", "unknown key; did you mean 'b'?"),
        ("d", "unknown key; one of: a, b"),
        ("a", "missing: this key is required"),
    ]


def test_a_mismatch_reads_as_its_messages():
    assert str(Mismatch.of("too hot", "a", 1)) == "too hot"
