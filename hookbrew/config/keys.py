"""Keys: the way to a value in a tree of tables and lists, as a tuple and as a user writes it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

import tomli_w

Keys = tuple[str | int, ...]
"""`("losses", 1, "temperature")`, written `losses[1].temperature`."""

STEP = re.compile(r"""\[(?P<index>\d{1,9})\]|(?P<name>[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')""")


def dotted(keys: Keys) -> str:
    """Keys as a user writes them; names that TOML would quote are quoted."""
    text = ""
    for key in keys:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += ("." if text else "") + tomli_w.dumps({key: 0}).removesuffix(" = 0\n")
    return text


def split(text: str) -> Keys:
    """The keys that a user wrote; raises ValueError when they are malformed."""
    try:
        return tuple(steps(text))
    except ValueError:  # tomllib's is one too, for a quoted name with a false escape
        message = f"{text!r} is not a key; write it like train.epochs or losses[1].temperature"
        raise ValueError(message) from None


def steps(text: str) -> Iterator[str | int]:
    """The keys in a text one by one; raises ValueError where it is malformed."""
    position = 0
    while position < len(text) or position == 0:
        dot = position > 0 and text[position] == "."
        step = STEP.match(text, position + dot)
        # a name stands at the beginning or after a dot, an index anywhere else
        if step is None or (step["name"] is not None) != (dot or position == 0):
            raise ValueError
        yield int(step["index"]) if step["name"] is None else bare(step["name"])
        position = step.end()


def bare(name: str) -> str:
    """A name without its quotes."""
    if name[0] not in "\"'":
        return name
    (only,) = tomllib.loads(f"{name} = 0")
    return only
