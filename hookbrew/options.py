"""Options of a component: a frozen attrs class that validates, documents and describes itself.

    @options
    class Gap:
        '''Mean absolute difference of two hidden states.'''
        scale: float = positive(1.0)
        '''Multiplies the difference.'''

One class feeds the strict reader, `hookbrew plugins show`, completion and the JSON Schema. The text
under a field is its documentation, where editors look for it too.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import attrs
from attrs import validators

KINDS = {
    "losses": "loss",
    "schedules": "schedule",
    "projections": "projection",
    "augments": "augment",
    "callbacks": "callback",
    "edits": "edit",
}
"""The kinds of components: plural, as in a catalogue, to singular, as in a sentence."""

UNIONS = (typing.Union, types.UnionType)
T = TypeVar("T")
REQUIRED = attrs.NOTHING
FACTORY: Any = type(attrs.Factory(list))
"""attrs declares its Factory as a function; at run time it is a class."""


def positive(default: Any = REQUIRED) -> Any:
    """A number above 0; nothing at all is allowed too where None is the default."""
    return checked(default, validators.gt(0))


def at_least(minimum: float, default: Any = REQUIRED) -> Any:
    """A number of `minimum` or more; nothing at all is allowed too where None is the default."""
    return checked(default, validators.ge(minimum))


def fraction(default: Any = REQUIRED) -> Any:
    """A number from 0 to 1, both included; nothing at all is allowed too where None is the default."""
    return checked(default, validators.and_(validators.ge(0), validators.le(1)))


def choice(*values: str, default: Any = REQUIRED) -> Any:
    """One of some words; nothing at all is allowed too where None is the default."""
    return checked(default, validators.in_(values))


def checked(default: Any, check: Any) -> Any:
    """A field with a validator, which None passes where it is the default."""
    return attrs.field(default=default, validator=validators.optional(check) if default is None else check)


@typing.dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(attrs.field, positive, at_least, fraction, choice)
)
def options(cls: type[T]) -> type[T]:
    """Make `cls` an options class: frozen, keyword-only, compared by value."""
    return attrs.frozen(kw_only=True)(cls)


@attrs.frozen
class Option:
    """What is known about one option."""

    name: str
    type: Any
    """The resolved annotation."""
    default: Any
    """`attrs.NOTHING` when the option must be given; the product of a factory otherwise called for."""
    bounds: dict[str, Any]
    """JSON Schema words: minimum, exclusiveMinimum, maximum, exclusiveMaximum, enum, minLength."""
    doc: str

    @property
    def required(self) -> bool:
        """Whether the option has no default."""
        return self.default is REQUIRED

    def kind(self) -> str:
        """The type and its bounds in words: `number > 0`."""
        if "enum" in self.bounds:
            return " | ".join(f'"{value}"' for value in self.bounds["enum"])
        low, high = self.bounds.get("minimum"), self.bounds.get("maximum")
        if low is not None and high is not None:
            return f"{named(self.type)} from {low} to {high}"
        limits = (f"{mark} {self.bounds[word]}" for mark, word in LIMITS.items() if word in self.bounds)
        return " ".join([named(self.type), *limits])


WORDS: dict[Any, str] = {bool: "true or false", int: "integer", float: "number", str: "string", type(None): "nothing"}


def named(hint: Any) -> str:
    """A type in the words of a TOML file: number, string, list of integer."""
    arguments = typing.get_args(hint)
    if hint in WORDS:
        return WORDS[hint]
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return " | ".join(f'"{value}"' for value in arguments)
    if origin in (list, tuple, Sequence):
        return f"list of {named(arguments[0])}" if arguments else "list"
    if origin is dict:
        return "table"
    if arguments:
        return " or ".join(named(a) for a in arguments if a is not type(None))
    return getattr(hint, "words", "table") if attrs.has(hint) else getattr(hint, "__name__", str(hint)).lower()


def varies(hint: Any) -> bool:
    """Whether an option of a loss may be given as a schedule: a number that is no integer."""
    return hint is float or (typing.get_origin(hint) in UNIONS and {*typing.get_args(hint)} == {float, type(None)})


def describe(cls: type) -> tuple[Option, ...]:
    """The options of an options class, in the order in which they were written."""
    hints = typing.get_type_hints(cls)
    docs = dict(documented(cls))
    return tuple(
        Option(written(f), hints[f.name], defaulted(f), bounds(f.validator), docs.get(f.name, ""))
        for f in attrs.fields(cls)
        if f.init
    )


def written(field: attrs.Attribute[Any]) -> str:
    """The key of a field in a file: its name, but for words that Python keeps for itself, as `from`."""
    return str(field.metadata.get("key", field.name))


def defaulted(field: attrs.Attribute[Any]) -> Any:
    """The default of a field, with `factory=` called; None where it depends on other options."""
    default: Any = field.default
    if not isinstance(default, FACTORY):
        return default
    return None if default.takes_self else default.factory()


LIMITS = {">": "exclusiveMinimum", ">=": "minimum", "<": "exclusiveMaximum", "<=": "maximum"}


def bounds(validator: Any) -> dict[str, Any]:
    """What a validator of attrs demands, in words of JSON Schema; {} for any other callable."""
    if hasattr(validator, "compare_op"):  # gt, ge, lt, le
        return {LIMITS[validator.compare_op]: validator.bound}
    if hasattr(validator, "options"):  # in_
        return {"enum": list(validator.options)}
    if hasattr(validator, "min_length"):
        return {"minLength": validator.min_length}
    if hasattr(validator, "validator"):  # optional
        return bounds(validator.validator)
    joined = getattr(validator, "_validators", ())  # and_
    return {word: bound for inner in joined for word, bound in bounds(inner).items()}


def documented(cls: type) -> Iterator[tuple[str, str]]:
    """Each field of `cls` with the string that stands under it; inherited fields first."""
    for base in reversed(cls.__mro__[:-1]):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):  # made at run time: no source, no documentation
            continue
        body = typing.cast(ast.ClassDef, tree.body[0]).body
        for line, below in pairwise(body):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                text = below.value if isinstance(below, ast.Expr) else None
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    yield line.target.id, inspect.cleandoc(text.value)
