"""Amounts as people write them: 80GiB, 25GB/s, 300T."""

from __future__ import annotations

import re

from hookbrew import words

BINARY = {f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)}
DECIMAL = {f"{letter}B": 1000**power for power, letter in enumerate("kMGT", 1)}
BYTES: dict[str, float] = {"B": 1.0, **BINARY, **DECIMAL}
RATES: dict[str, float] = {f"{unit}/s": size for unit, size in BYTES.items()}
FLOPS: dict[str, float] = {**{letter: 1000.0**power for power, letter in enumerate("MGTP", 2)}}

EXAMPLES = ("80GiB", "25GB/s", "300T")


def amount(text: str, units: dict[str, float]) -> float:
    """A number above 0 times its unit; raises ValueError in one line, with the nearest unit."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z/]*)\s*", text)
    example = next(example for example in EXAMPLES if example.lstrip("0123456789") in units)
    if found is None or not float(found[1]):
        raise ValueError(f"{text!r} is no amount, as {example}")
    number, unit = float(found[1]), found[2]
    if unit not in units:
        reason = f"no unit {unit!r}; {near(unit, units)}" if unit else f"the unit is missing; as {example}"
        raise ValueError(f"{text!r}: {reason}")
    return number * units[unit]


def near(unit: str, units: dict[str, float]) -> str:
    """The unit that was meant, also where the case is wrong or the B was left out; or all of them."""
    plain = {known.lower(): known for known in units}
    for text in (unit, f"{unit}B", f"{unit}/s", f"{unit}B/s", unit[:1]):
        if text and text.lower() in plain:
            return f"did you mean {plain[text.lower()]!r}?"
    return words.hint(unit, units)


def mebibytes(size: float) -> str:
    """`1,234 MiB`, or `0.123`, without the unit."""
    value = size / 2**20
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}" if value >= 1 else f"{value:.2f}" if value else "0"


def short(value: float) -> str:
    """`1.93 T`, `45 G`: operations."""
    for unit, size in reversed(FLOPS.items()):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} "
