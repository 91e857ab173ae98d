"""Faults: what is wrong with a value and at which keys; and how cattrs' errors become them."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import attrs
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError

from hookbrew import words
from hookbrew.config.keys import Keys
from hookbrew.options import written

MISSING = "missing: this key is required"
LONGEST = 60


class Fault(NamedTuple):
    """One mistake, at keys relative to the value that was looked at."""

    keys: Keys
    message: str


class Mismatch(ValueError):
    """A value that does not fit; the hooks of the converter raise nothing else."""

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults
        super().__init__("; ".join(fault.message for fault in faults))

    @classmethod
    def of(cls, message: str, *keys: str | int) -> Mismatch:
        """One fault, at the value itself or below it."""
        return cls(Fault(keys, message))


@contextmanager
def collected(found: list[Fault], *keys: str | int, also: Collection[str] = ()) -> Iterator[None]:
    """Keep the faults of one value for later, so that all are reported together."""
    try:
        yield
    except (Mismatch, ClassValidationError, IterableValidationError) as error:
        found += faults(error, keys, also)


def finish(found: Iterable[Fault]) -> None:
    """Raise what was collected, if anything was."""
    all_of_them = tuple(found)
    if all_of_them:
        raise Mismatch(*all_of_them)


def faults(error: BaseException, keys: Keys = (), also: Collection[str] = ()) -> Iterator[Fault]:
    """Every fault inside an error of the converter.

    also: further names that the outermost table knows, for suggestions.
    """
    if isinstance(error, Mismatch):
        yield from (Fault(keys + fault.keys, fault.message) for fault in error.faults)
    elif isinstance(error, ClassValidationError):
        yield from of_table(error, keys, also)
    elif isinstance(error, IterableValidationError):
        noted, bare = error.group_exceptions()
        for inner, note in noted:
            yield from faults(inner, (*keys, note.index))
        for inner in bare:
            yield from faults(inner, keys)
    else:
        yield Fault(keys, said(error))


def of_table(error: ClassValidationError, keys: Keys, also: Collection[str]) -> Iterator[Fault]:
    """The faults of one attrs class: of its fields, its key names, and of its own checks."""
    noted, bare = error.group_exceptions()
    names = {f.name: written(f) for f in attrs.fields(error.cl) if f.init}
    missing = [names[note.name] for inner, note in noted if type(inner) is KeyError]
    extra = [name for inner in bare if isinstance(inner, ForbiddenExtraKeysError) for name in inner.extra_fields]
    known = [*names.values(), *also]
    yield from of_names(extra, missing, known, keys)
    for inner, note in noted:
        if type(inner) is not KeyError:
            yield from faults(inner, (*keys, names[note.name]))
    for inner in bare:
        if not isinstance(inner, ForbiddenExtraKeysError):
            field = next((name for name in known if str(inner).startswith(f"'{name}' ")), None)
            yield Fault((*keys, field) if field else keys, said(inner, field))


def of_names(extra: Iterable[str], missing: Iterable[str], known: Iterable[str], keys: Keys = ()) -> Iterator[Fault]:
    """Unknown and missing keys; a missing one that an unknown one was probably meant to be is said once."""
    lacking, known = list(missing), list(known)
    for name in sorted(extra):
        near = words.nearest(name, lacking)
        if near is not None and near == words.nearest(name, known):
            lacking.remove(near)
            yield Fault((*keys, name), f"unknown key; did you mean {near!r}? (it is required)")
        else:
            yield Fault((*keys, name), f"unknown key; {words.hint(name, known)}")
    yield from (Fault((*keys, name), MISSING) for name in lacking)


def said(error: BaseException, field: str | None = None) -> str:
    """The sentence of a failed check, without the name of its field, which the path says."""
    if "must be in " in str(error) and len(error.args) == 4:
        return choice(error.args[3], error.args[2])
    text = str(error.args[0] if error.args else error)
    if text.startswith("Length of "):
        return "length " + text.partition("' ")[2]
    if field is not None:
        return text.removeprefix(f"'{field}' ")
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def choice(value: Any, choices: Iterable[Any]) -> str:
    """The sentence about a word that is none of the words allowed."""
    return f"{shown(value)} is not a choice; {words.hint(str(value), map(str, choices))}"


def shown(value: Any) -> str:
    """A value in a sentence: `the string 'three'`, `3.7`, `a table`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the string {value if len(value) <= LONGEST else value[:LONGEST] + ' ...'!r}"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return f"the date or time {value}"
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a table"
    return "a list" if isinstance(value, (list, tuple)) else f"a {type(value).__name__}"
