"""Sentences about names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookbrew.words import hint, nearby, nearest, several


@pytest.mark.parametrize(
    ("name", "names", "expected"),
    [
        ("temprature", ["temperature", "rounds"], "did you mean 'temperature'?"),
        ("zzz", ["b", "a", "b"], "one of: a, b"),
        ("zzz", [], "there are none"),
    ],
)
def test_hint(name, names, expected):
    assert hint(name, names) == expected


def test_nearest_is_one_name_or_none():
    assert nearest("kdd", ["kd_ce", "kd"]) == "kd"
    assert nearest("xyz", ["kd_ce", "kd"]) is None


def test_nearby_does_not_list():
    assert nearby("lineer", ["linear", "conv"]) == "did you mean 'linear'?"
    assert nearby("zzz", ["linear", "conv", "conv"]) == "none of its 2 names is near"


def test_several():
    assert several([]) == ""
    assert several([1, 2, 3]) == "1, 2, 3"
    assert several(range(6)) == "0, 1, 2, 3, 4, 5"
    assert several(range(10)) == "0, 1, 2, 3, 4, 5 ... and 4 more"
    assert several("abc", most=2) == "a, b ... and 1 more"


@given(st.text(max_size=5), st.lists(st.text(max_size=5)))
def test_a_suggestion_is_a_known_name(name, names):
    near = nearest(name, names)
    assert near is None or near in names
    if name in names:
        assert near == name
