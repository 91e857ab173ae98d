"""An estimate as text and as JSON; each number says whether it was measured."""

from __future__ import annotations

from typing import Any

import attrs

from hookbrew.estimate.amount import mebibytes, short
from hookbrew.estimate.estimate import HIDDEN, MOST, ROOM, Estimate, Line
from hookbrew.words import aligned

PARTS = ("weights", "gradients", "optimizer", "average", "teacher", "activations", "communication")
SHORT = {"gradients": "grads", "optimizer": "optim", "activations": "activ", "communication": "comm"}


def data(found: Estimate) -> dict[str, Any]:
    """All numbers, as plain values."""
    lines = [{**attrs.asdict(line), "peak": line.peak} for line in found.lines]
    return {"lines": lines, "measured": attrs.asdict(found.measured), "hardware": attrs.asdict(found.hardware)}


def text(found: Estimate, name: str = "") -> str:
    """The table, and what it is made of."""
    judged = found.hardware.memory is not None
    shown = [part for part in PARTS if any(line.memory[part] for line in found.lines)]
    head = ["GPUs", "", "batch each", *(SHORT.get(part, part) for part in shown), "MiB each"]
    head += [*(["fits", "largest batch"] if judged else []), "step", "samples/s"]
    rows = [head, *(cells(line, shown, judged=judged) for line in found.lines)]
    numeric = [place for place, cell in enumerate(head) if cell not in ("", "fits")]
    return "\n".join([*([f"stage {name}"] if name else []), *aligned(rows, right=numeric), "", *under(found)])


def cells(line: Line, shown: list[str], *, judged: bool) -> list[str]:
    """One line of the table."""
    found = [str(line.processes), "" if line.way == "alone" else line.way, f"{line.batch:,}"]
    found += [*(mebibytes(line.memory[part]) for part in shown), mebibytes(line.peak)]
    if judged:
        every = line.largest == line.processes * MOST
        found += ["yes" if line.fits else "no", "any" if every else f"{line.largest:,}" if line.largest else "none"]
    return [*found, seconds(line.step), f"{line.rate:,.0f}" if line.rate >= 10 else f"{line.rate:.2g}"]


def seconds(value: float) -> str:
    """`1.93 ms`, `2.1 s`."""
    return f"{value:,.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def under(found: Estimate) -> list[str]:
    """What was measured, what was not, and on which assumptions."""
    one, on = found.measured, found.hardware
    sizes = " and ".join(str(trail.samples) for trail in one.trails)
    operations = sum(one.flops.values())
    each = ", ".join(f"{name} {short(count)}FLOP" for name, count in one.flops.items())
    said = [
        f"measured on {one.facts['device']}: memory and time of real steps of {sizes} samples, the first of the data;",
        f"  {short(operations)}FLOP a sample ({each})",
    ]
    if "rate" in one.facts:
        reached = operations * one.trails[0].samples / one.seconds[0]
        product = one.facts["rate"]
        said.append(f"  it reached {short(reached)}FLOP/s; a large matrix product here, {short(product)}FLOP/s")
    said.append("estimated: all else. Other batches lie on a line through those; longer sequences need more.")
    if on.flops is not None:
        said.append(f"  time: operations at {short(on.flops)}FLOP/s for each GPU, as was said, without the optimizer's")
    else:
        said.append(f"  time: that of {one.facts['device']} here; say --flops for another device")
    speed = f"{on.bandwidth / 1e9:g} GB/s for each GPU"
    said.append(f"  communication at {speed}, hidden behind backward up to {HIDDEN:.0%} of a pass")
    if on.memory is not None:
        limit = mebibytes(on.memory)
        said.append(f"  fits: within {ROOM:.0%} of {limit} MiB; the rest is the context's, and lost between blocks")
    if one.accumulate > 1:
        said.append(f"  a step has {one.accumulate} batches, one after the other")
    if found.refused:
        said.append(f"without FSDP2: {found.refused}")
    return said
