"""Errors, and how mistakes with places are shown."""

import inspect
import re

import pytest

from hookbrew import errors
from hookbrew.errors import (
    CheckpointError,
    ConfigError,
    DifferenceError,
    HookbrewError,
    NonFiniteError,
    Place,
    PreemptedError,
    Problem,
)


def test_a_place_with_its_caret():
    place = Place("kd.toml", 16, 3, "  wieght = 50", 6)
    assert str(place) == "kd.toml:16:3"
    assert place.caret() == "   |\n16 |   wieght = 50\n   |   ^^^^^^"


@pytest.mark.parametrize(
    ("place", "marks"),
    [
        (Place("f", 1, 1, "abc", 99), "^^^"),
        (Place("f", 1, 4, "abc", 1), "   ^"),
        (Place("f", 1, 2, "abc", 0), " ^"),
        (Place("f", 1, 3, "\tb = 1", 3), "\t ^^^"),
    ],
)
def test_a_caret_stays_under_its_line(place, marks):
    assert place.caret().split("\n")[2] == f"  | {marks}"


def test_a_problem_with_what_is_known_of_it():
    assert str(Problem("", "broken")) == "broken"
    assert str(Problem("a.b", "broken")) == "a.b: broken"
    assert str(Problem("a.b", "broken", "-s a.b=1")) == "-s a.b=1: a.b: broken"
    assert str(Problem("a.b", "broken", Place("f", 2, 1))) == "f:2:1: a.b: broken"
    assert str(Problem("a.b", "broken", Place("f", 2, 1, "b = 1"))) == "f:2:1: a.b: broken\n  |\n2 | b = 1\n  | ^"


def test_a_config_error_says_all_its_problems():
    error = ConfigError(Problem(name, "broken") for name in "ab")
    assert str(error) == "a: broken\nb: broken"
    assert [problem.path for problem in error.problems] == ["a", "b"]
    assert isinstance(error, HookbrewError)


def test_exit_codes():
    codes = {
        cls: cls.exit_code for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, Exception)
    }
    assert codes.pop(NonFiniteError) == 76
    assert codes.pop(PreemptedError) == 75
    assert codes.pop(CheckpointError) == 74
    assert codes.pop(DifferenceError) == 77
    assert set(codes.values()) == {2}


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes():
    classes = {n for n, c in vars(errors).items() if inspect.isclass(c) and issubclass(c, Exception)}
    lines = [line for line in errors.__doc__.splitlines() if re.search(r"Error\b", line)]
    drawn = [re.search(r"(\w+Error)\b", line) for line in lines]
    assert {match[1] for match in drawn} == classes
    parents: dict[int, str] = {}
    for match in drawn:
        depth = match.start() // 4
        parents[depth] = match[1]
        if depth:
            assert getattr(errors, match[1]).__bases__ == (getattr(errors, parents[depth - 1]),)
