"""Options classes and what they say of themselves."""

from pathlib import Path
from typing import ClassVar, Literal

import attrs
import pytest

from hookbrew.options import (
    REQUIRED,
    at_least,
    bounds,
    choice,
    describe,
    documented,
    fraction,
    named,
    options,
    positive,
)


@options
class Parent:
    """Parent."""

    inherited: int = 1
    """Comes first."""


@options
class Sample(Parent):
    """One of each."""

    takes: ClassVar[str] = "hidden"
    must: float = positive()
    """Has no default."""
    count: int = at_least(1, 3)
    share: float = fraction(0.5)
    word: str = choice("red", "green", default="red")
    """One line,

    and another.
    """
    maybe: float | None = positive(None)
    items: list[int] = attrs.field(factory=list)
    twice: int = attrs.field(default=attrs.Factory(lambda self: self.count * 2, takes_self=True))
    hidden: int = attrs.field(init=False, default=7)


def test_an_options_class_is_frozen_and_has_keywords_only():
    sample = Sample(must=1.0)
    assert sample == Sample(must=1.0)
    assert sample.twice == 6
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        sample.must = 2.0
    with pytest.raises(TypeError, match="positional"):
        Sample(1.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"must": 0}, "'must' must be > 0: 0"),
        ({"must": float("nan")}, "'must' must be > 0: nan"),
        ({"must": 1, "count": 0}, "'count' must be >= 1: 0"),
        ({"must": 1, "share": 1.5}, "'share' must be <= 1: 1.5"),
        ({"must": 1, "share": -0.5}, "'share' must be >= 0: -0.5"),
        ({"must": 1, "word": "blue"}, r"'word' must be in \('red', 'green'\) \(got 'blue'\)"),
        ({"must": 1, "maybe": -1}, "'maybe' must be > 0: -1"),
    ],
)
def test_bounds_are_checked(given, message):
    with pytest.raises(ValueError, match=message):
        Sample(**given)


@pytest.mark.parametrize("field", [positive(None), at_least(1, None), fraction(None), choice("a", default=None)])
def test_none_passes_where_it_is_the_default(field):
    cls = attrs.make_class("Made", {"x": field})
    assert cls().x is None


def test_describe():
    known = {option.name: option for option in describe(Sample)}
    assert list(known) == ["inherited", "must", "count", "share", "word", "maybe", "items", "twice"]
    assert {name: option.kind() for name, option in known.items()} == {
        "inherited": "integer",
        "must": "number > 0",
        "count": "integer >= 1",
        "share": "number from 0 to 1",
        "word": '"red" | "green"',
        "maybe": "number > 0",
        "items": "list of integer",
        "twice": "integer",
    }
    assert known["must"].required
    assert known["must"].default is REQUIRED
    assert not known["count"].required
    assert known["items"].default == []
    assert known["twice"].default is None
    assert known["maybe"].default is None
    assert known["must"].doc == "Has no default."
    assert known["word"].doc == "One line,\n\nand another."
    assert known["count"].doc == ""
    assert known["inherited"].doc == "Comes first."


v = attrs.validators


@pytest.mark.parametrize(
    ("validator", "expected"),
    [
        (None, {}),
        (v.gt(0), {"exclusiveMinimum": 0}),
        (v.and_(v.ge(1), v.lt(5)), {"minimum": 1, "exclusiveMaximum": 5}),
        (v.optional(v.le(2)), {"maximum": 2}),
        (v.in_(["a", "b"]), {"enum": ["a", "b"]}),
        (v.min_len(1), {"minLength": 1}),
        (lambda self, attribute, value: None, {}),
        (v.instance_of(int), {}),
    ],
)
def test_bounds_of_the_validators_of_attrs(validator, expected):
    assert bounds(validator) == expected


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (bool, "true or false"),
        (float | None, "number"),
        (int | list[str], "integer or list of string"),
        (dict[str, float], "table"),
        (Literal["a", "b"], '"a" | "b"'),
        (list, "list"),
        (Path, "path"),
        (Sample, "table"),
        (tuple[float, float], "list of number"),
    ],
)
def test_types_in_words(hint, expected):
    assert named(hint) == expected


def test_a_class_without_source_has_no_documentation():
    assert list(documented(attrs.make_class("Made", ["x"]))) == []
