"""The strict converter: a value has the type that is asked for, or it is refused.

cattrs by itself takes "no" for True, 3.7 for 3 and a string for a list of its characters.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import attrs
from cattrs import Converter, override
from cattrs.cols import homogenous_tuple_structure_factory, list_structure_factory
from cattrs.gen import make_dict_structure_fn

from hookbrew.config.faults import Fault, Mismatch, choice, collected, finish, said, shown
from hookbrew.options import written

Hook = Callable[[Any, Any], Any]
UNIONS = (Union, types.UnionType)

ARTICLES: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    Path: "a path",
    list: "a list",
    tuple: "a list",
    Sequence: "a list",
    dict: "a table",
}


def converter() -> Converter:
    """A new strict converter; it knows attrs classes, and no component yet."""
    made = Converter(forbid_extra_keys=True, detailed_validation=True)
    for kind, hook in {bool: boolean, int: integer, float: number, str: string, Path: path}.items():
        made.register_structure_hook(kind, hook)
    made.register_structure_hook_factory(lambda t: origin(t) in (list, Sequence), listed)
    made.register_structure_hook_factory(lambda t: origin(t) is tuple, tupled)
    made.register_structure_hook_factory(lambda t: origin(t) is dict, keyed)
    made.register_structure_hook_factory(lambda t: origin(t) is Literal, literal)
    made.register_structure_hook_factory(lambda t: origin(t) in UNIONS, either)
    made.register_structure_hook_factory(attrs.has, table)
    return made


def origin(hint: Any) -> Any:
    """`list` for `list[int]`, and the type itself for a bare one."""
    return get_origin(hint) or hint


def wanted(hint: Any, value: Any) -> Mismatch:
    """The error of a value that is not of a type."""
    return Mismatch.of(f"expected {expected(hint)}, got {shown(value)}")


def expected(hint: Any) -> str:
    """A type in a sentence: `an integer`, `a number or a list`."""
    if origin(hint) is Literal:
        return " or ".join(shown(value) for value in get_args(hint))
    if origin(hint) in UNIONS:
        *most, last = dict.fromkeys(expected(arm) for arm in arms(hint))
        return f"{', '.join(most)} or {last}" if most else last
    return ARTICLES.get(origin(hint), "a table")


def boolean(value: Any, _: Any) -> bool:
    """True or False, and nothing that only looks like it."""
    if not isinstance(value, bool):
        raise wanted(bool, value)
    return value


def integer(value: Any, _: Any) -> int:
    """An integer; 3.0 is none, nor is true."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise wanted(int, value)
    return value


def number(value: Any, _: Any) -> float:
    """A float, or an integer made one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wanted(float, value)
    return float(value)


def string(value: Any, _: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise wanted(str, value)
    return value


def path(value: Any, _: Any) -> Path:
    """A path of the file system, from a string."""
    if not isinstance(value, (str, Path)):
        raise wanted(Path, value)
    if value == "" or "\0" in str(value):
        raise Mismatch.of("a path cannot be empty" if value == "" else "a path cannot hold a null character")
    return Path(value)


def listed(hint: Any, conv: Converter) -> Hook:
    """A list, item by item; a string is not a list of characters."""
    return demanding(list_structure_factory(hint if get_args(hint) else list[Any], conv), hint)


def tupled(hint: Any, conv: Converter) -> Hook:
    """A tuple, from a list; of one length where the type has one."""
    inner = get_args(hint)
    if not inner or inner[-1] is Ellipsis:
        return demanding(homogenous_tuple_structure_factory(hint if inner else tuple[Any, ...], conv), hint)

    def structure(value: Any, _: Any) -> tuple[Any, ...]:
        if len(value) != len(inner):
            raise Mismatch.of(f"expected a list of {len(inner)}, got {len(value)}")
        return tuple(gathered(enumerate(value), lambda index: inner[index], conv).values())

    return demanding(structure, hint)


def demanding(hook: Callable[[Any, Any], Any], hint: Any) -> Hook:
    """Demand a list before a hook looks at its items."""

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            raise wanted(hint, value)
        return hook(value, hint)

    return structure


def keyed(hint: Any, conv: Converter) -> Hook:
    """A table with any keys, and values of one type."""
    inner = (get_args(hint) or (str, Any))[1]

    def structure(value: Any, _: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise wanted(hint, value)
        return gathered(value.items(), lambda _: inner, conv)

    return structure


def gathered(items: Any, hint_of: Callable[[Any], Any], conv: Converter) -> dict[Any, Any]:
    """Structure several values, and raise the faults of all of them together."""
    made: dict[Any, Any] = {}
    found: list[Fault] = []
    for key, value in items:
        with collected(found, key):
            made[key] = conv.structure(value, hint_of(key))
    finish(found)
    return made


def literal(hint: Any) -> Hook:
    """One of some words."""
    choices = get_args(hint)

    def structure(value: Any, _: Any) -> Any:
        if not any(value == word and type(value) is type(word) for word in choices):
            raise Mismatch.of(choice(value, choices))
        return value

    return structure


def arms(hint: Any) -> list[Any]:
    """The types that a union joins, None left out; the narrow ones first."""
    order = [bool, int, float]
    inner = [arm for arm in get_args(hint) if arm is not type(None)]
    return sorted(inner, key=lambda arm: order.index(arm) if arm in order else len(order))


def either(hint: Any, conv: Converter) -> Hook:
    """A value of one of several types: the first that it is like decides, and says what is wrong inside."""
    choices, none = arms(hint), type(None) in get_args(hint)
    inner = {index: conv.get_structure_hook(arm) for index, arm in enumerate(choices)}

    def structure(value: Any, _: Any) -> Any:
        if value is None and none:
            return None
        for index, arm in enumerate(choices):
            if len(choices) == 1 or like(value, arm):
                return inner[index](value, arm)
        raise wanted(hint, value)

    return structure


def like(value: Any, hint: Any) -> bool:
    """Whether a value is of a type at first sight."""
    if origin(hint) is Literal:
        return any(value == word and type(value) is type(word) for word in get_args(hint))
    kinds: dict[Any, tuple[type, ...]] = {
        float: (int, float),
        Path: (str, Path),
        list: (list, tuple),
        tuple: (list, tuple),
        Sequence: (list, tuple),
    }
    kind = origin(hint)
    if attrs.has(kind):
        return isinstance(value, (Mapping, kind))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, kinds.get(kind, (kind,)))


def table(cls: Any, conv: Converter, **hooks: Hook) -> Hook:
    """An attrs class from a table; hooks: for fields that need one of their own.

    Validators are called here, field by field, so that one failure does not hide the next.
    """
    overrides: dict[str, Any] = {
        field.name: override(struct_hook=validated(field, conv), rename=written(field))
        for field in attrs.fields(cls)
        if field.validator
    }
    overrides.update({name: override(struct_hook=hook) for name, hook in hooks.items()})
    build = make_dict_structure_fn(cls, conv, _cattrs_forbid_extra_keys=True, **overrides)

    def structure(value: Any, _: Any) -> Any:
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise wanted(dict, value)
        return build(dict(value), cls)

    return structure


def validated(field: attrs.Attribute[Any], conv: Converter) -> Hook:
    """Structure a field, then check it; a check that looks at other fields is left to the class itself."""

    def structure(value: Any, hint: Any) -> Any:
        made = conv.structure(value, hint)
        try:
            field.validator(None, field, made)  # type: ignore[misc]  # only fields that have one come here
        except (ValueError, TypeError) as error:
            raise Mismatch.of(said(error, field.name)) from error
        except AttributeError:  # it asked None for another field
            pass
        return made

    return structure
