"""From a call of a module to one tensor: the ports, the default pick and explicit picks.

A port says which hook sees the value and what part of the call it is. More ports are more rows of PORTS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs
from torch import Tensor

from hookbrew.errors import SelectorError
from hookbrew.taps.selector import chosen
from hookbrew.words import hint, several

PREFERRED: Final = ("logits", "last_hidden_state")
"""What a mapping is picked by when nothing else is said; never the loss, which comes first if labels are given."""


@attrs.frozen
class Port:
    """One side of a call."""

    noun: str
    """What an error calls the value."""
    before: bool
    """Seen by the hook that runs before the module, which is given (args, kwargs); otherwise (args, output)."""
    take: Callable[[tuple[str, ...], tuple[Any, ...], Any], Any]
    """From the names of the module's parameters and what the hook is given to the value that picks start from."""


def first(names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The first positional argument; of keyword arguments, which some layers have alone, the one that the module's
    signature has first."""
    if args:
        return args[0]
    name = next((name for name in names if name in kwargs), next(iter(kwargs), None))
    return None if name is None else kwargs[name]


PORTS: Final[dict[str, Port]] = {
    "out": Port("output", False, lambda names, args, output: output),
    "in": Port("input", True, first),
    "args": Port("args", True, lambda names, args, kwargs: args),
    "kwargs": Port("kwargs", True, lambda names, args, kwargs: kwargs),
}


def pick(value: Any, picks: tuple[str | int, ...], noun: str) -> Tensor:
    """The tensor that the picks lead to, or without picks the default one; SelectorError says what is there."""
    for done, key in enumerate(picks):
        value = element(value, key, f"{noun}{chosen(picks[:done])}")
    if picks and not isinstance(value, Tensor):
        raise SelectorError(f"{noun}{chosen(picks)} is {described(value)}, not a tensor")
    return value if isinstance(value, Tensor) else default(value, noun)


def element(value: Any, key: str | int, noun: str) -> Any:
    """What `.key` or `[i]` names in a value."""
    write = chosen((key,))
    if isinstance(value, Tensor):
        effect = f"{write} would slice it, drop" if isinstance(key, int) else "drop"
        raise SelectorError(f"{noun} is already a tensor {tuple(value.shape)}; {effect} the '{write}'")
    keyed = fields(value)
    if key in keyed:
        return keyed[key]
    if isinstance(key, str) and keyed:
        raise SelectorError(f"{noun} is {described(value)}, without '{key}'; {hint(key, map(str, keyed))}")
    if isinstance(key, str) or not isinstance(value, tuple | list):
        raise SelectorError(
            f"{noun} is {described(value)}; '{write}' needs {'a tuple' if isinstance(key, int) else 'keys'}"
        )
    if not -len(value) <= key < len(value):
        raise SelectorError(f"{noun} has {len(value)} element(s); '{write}' is out of range")
    return value[key]


def default(value: Any, noun: str) -> Tensor:
    """What is meant when no pick is written: the logits, the last hidden state, or the first of a tuple."""
    keyed = fields(value)
    for key in PREFERRED:
        if isinstance(tensor := keyed.get(key), Tensor):
            return tensor
    what = f"{noun} is {described(value)}"
    if keyed:
        likely = sorted(keyed, key=lambda key: "logits" not in str(key))[:2]
        raise SelectorError(f"{what}; add a pick: {' or '.join(chosen((key,)) for key in likely)}")
    if not isinstance(value, tuple | list):
        raise SelectorError(f"{what}, not a tensor")
    if not value:
        raise SelectorError(f"{noun} is empty")
    if not isinstance(value[0], Tensor):
        raise SelectorError(f"{what} that begins with {described(value[0])}; add a pick: [1]")
    if value[0].dim() == 0 and len(value) > 1:
        raise SelectorError(f"{what} that begins with a scalar, perhaps a loss; add a pick: [1]")
    return value[0]


def fields(value: Any) -> dict[Any, Any]:
    """The named parts of a mapping, a named tuple or a dataclass; none of anything else."""
    if isinstance(value, Mapping):
        return dict(value)
    names = getattr(value, "_fields", None) if isinstance(value, tuple) else None
    names = names or getattr(value, "__dataclass_fields__", None)
    return {name: getattr(value, name) for name in names} if names and not isinstance(value, type) else {}


def described(value: Any) -> str:
    """A value in a sentence: its class, and its keys or length."""
    name = type(value).__name__
    kind = f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
    if keyed := fields(value):
        return f"{kind} with {several(map(str, keyed))}"
    if isinstance(value, tuple | list):
        return f"{kind} of {len(value)}"
    return "None" if value is None else kind


def shape(value: Any) -> str:
    """The shapes inside an output, as text."""
    if isinstance(value, Tensor):
        return "nested" if value.is_nested else str(tuple(value.shape))
    if keyed := fields(value):
        return f"{type(value).__name__}{{{', '.join(f'{key}: {shape(part)}' for key, part in keyed.items())}}}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(shape, value))})"
    return "None" if value is None else type(value).__name__
