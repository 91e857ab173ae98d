"""Reads a selector, and says what is wrong with one. The grammar is in selector.py."""

from __future__ import annotations

import re
from typing import Final

from hookbrew.errors import SelectorError
from hookbrew.taps.selector import ALIAS, NAME, PORTS, Index, Range, Segment, Selector
from hookbrew.words import hint

INT: Final = r"-?[0-9]+"
RANGE: Final = r"(?:-?[0-9]+)?:(?:-?[0-9]+)?(?::(?:-?[0-9]+)?)?"
ALTERNATIVE: Final = rf"(?:{NAME}|[*?])+"
GLOB: Final = rf"(?:{NAME}|[*?]|\{{{ALTERNATIVE}(?:,{ALTERNATIVE})*\}})+"

SPEC: Final = re.compile(r"((?:[^\[\]#:]|\[[^\[\]]*\])*)(?:#((?:[^:#]|:(?![A-Za-z_]))*))?(?::([A-Za-z_]\w*)(.*))?")
SEGMENT: Final = re.compile(rf"({GLOB})((?:\[[^\[\]]*\])*)")
PICK: Final = re.compile(rf"\.({NAME}+)|\[({INT})\]")


def parse(text: str) -> Selector:
    """Read a selector; SelectorError says what is wrong with it."""
    if not isinstance(text, str):
        raise SelectorError(f"a selector is a string, not {type(text).__name__} ({text!r})")
    if text == ALIAS:
        return Selector()
    if not text.strip():
        raise mistake(text, "it is empty; the model's own output is ':out'")
    match = SPEC.fullmatch(re.sub(r"(?<=[\[,:])\s+|\s+(?=[\],:])", "", text))
    if match is None:
        raise mistake(text, malformed(text))
    path, call, port, picks = match.groups()
    if path == "" and call is None and port is None:
        raise mistake(text, "it is empty; the model's own output is ':out'")
    segments = tuple(segment(text, part) for part in split(path)) if path else ()
    return Selector(segments, None if call is None else parse_call(text, call), *parse_port(text, port, picks))


def split(path: str) -> list[str]:
    """The segments of a path: cut at dots, except inside braces."""
    return re.split(r"\.(?![^{}]*\})", path)


def segment(text: str, part: str) -> Segment:
    """One segment of the path of `text`."""
    match = SEGMENT.fullmatch(part)
    if match is None:
        raise mistake(text, refused(part))
    glob, brackets = match.groups()
    if "**" in glob and glob != "**":
        raise mistake(text, f"'**' stands alone between dots, not in {glob!r}")
    return Segment(glob, tuple(index(text, inside) for inside in re.findall(r"\[([^\[\]]*)\]", brackets)))


def refused(part: str) -> str:
    """What is wrong with a segment that is none."""
    if part == "" or part.startswith("["):
        return "a name is missing beside '.' or before '['; a path starts with a child of the model"
    if part.count("{") != part.count("}"):
        return f"a brace in {part!r} is not closed"
    if ".." in part:
        return f"{part!r} is not a glob; a range is a slice of a container: layer[0:12]"
    return f"{part!r} is not a name or a glob (* ? {{a,b}}), followed by [index]"


def index(text: str, inside: str) -> Index:
    """What stands between the brackets of a path."""
    if inside == "*" or re.fullmatch(RANGE, inside):
        return extent(text, inside)
    if re.fullmatch(INT, inside):
        return int(inside)
    if re.fullmatch(rf"{INT}(?:,{INT})+", inside):
        return tuple(map(int, inside.split(",")))
    raise mistake(text, f"[{inside}] is not an index: a number, a slice a:b:c, a list 0,3,5 or *")


def parse_call(text: str, call: str) -> int | Range:
    """What stands after `#`."""
    if call == "*" or re.fullmatch(RANGE, call):
        return extent(text, call)
    if re.fullmatch(INT, call):
        return int(call)
    raise mistake(text, f"'#{call}' is not a call: a number, a slice a:b:c or *")


def extent(text: str, inside: str) -> Range:
    """A slice or `*`."""
    if inside == "*":
        return Range()
    parts = [int(part) if part else None for part in inside.split(":")]
    if parts[2:] == [0]:
        raise mistake(text, f"the step of {inside} is 0")
    return Range(*parts)


def parse_port(text: str, port: str | None, picks: str | None) -> tuple[str, tuple[str | int, ...]]:
    """What stands after `:`."""
    if port is None:
        return "out", ()
    if port not in PORTS:
        raise mistake(text, f"unknown port {port!r}; {hint(port, PORTS)}")
    found, end = [], 0
    for match in PICK.finditer(picks or ""):
        if match.start() != end:
            break
        found.append(match[1] if match[2] is None else int(match[2]))
        end = match.end()
    if "#" in (picks or ""):
        raise mistake(text, "the call stands before the port: path#call:port")
    if end != len(picks or ""):
        raise mistake(text, f"{(picks or '')[end:]!r} is not a pick: .key or [i] after the port")
    return port, tuple(found)


def malformed(text: str) -> str:
    """What is wrong with a text that does not even divide into path, call and port."""
    if text.count("[") != text.count("]"):
        return "a bracket is not closed"
    if text.endswith(":"):
        return f"the port after ':' is missing; one of: {', '.join(PORTS)}"
    return "expected path[index]#call:port.key"


def mistake(text: str, problem: str) -> SelectorError:
    """Every mistake of spelling, with the whole selector."""
    return SelectorError(f"selector {text!r}: {problem}")
