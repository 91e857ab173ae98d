"""From one measured step to several processes: what each would have in memory, and how long a step would take.

Memory is followed along the step: at each gradient there are the weights, the gradients that came before, what the
measured pass had besides at that point, scaled to the batch of one process, and what DDP or FSDP2 holds. The largest
sum counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import attrs

from hookbrew.estimate.measure import Measured, Trail
from hookbrew.estimate.sizes import Weight

WAYS = ("DDP", "FSDP2", "FSDP2, both")
"""`train.shard` none, student and both."""
ROOM = 0.9
"""So much of a device's memory is there for a training: the rest is the context's and lost between blocks."""
MOST = 2**20
"""Samples of one process, up to which a batch is looked for."""
HIDDEN = 2 / 3
"""Of a pass, backward: as long as that lasts, averaging hides behind it."""


@attrs.frozen(kw_only=True)
class Hardware:
    """What it would run on."""

    memory: float | None
    """Bytes of one device; None if nobody said, and nothing is judged."""
    bandwidth: float
    """Bytes a second between each two processes."""
    flops: float | None = None
    """Operations a second that each device reaches in such a training; None for the device here, as it was measured."""


@attrs.frozen(kw_only=True)
class Line:
    """One number of processes, and one way to share the work."""

    processes: int
    way: str
    batch: int
    """Samples of one process in a pass."""
    memory: Mapping[str, float]
    """Bytes at the peak: weights, gradients, optimizer, average, teacher, activations, communication."""
    compute: float
    """Seconds of a step, without what is said to others."""
    communication: float
    """Seconds of that, of which some are hidden behind backward."""
    step: float
    rate: float
    """Samples a second of all processes together."""
    fits: bool | None
    largest: int | None
    """The largest batch of all processes together that would fit; 0 for none, None where nothing is judged."""

    @property
    def peak(self) -> float:
        """Bytes of one process."""
        return sum(self.memory.values())


@attrs.frozen(kw_only=True)
class Estimate:
    """All lines, with what they were made of."""

    lines: Sequence[Line]
    measured: Measured
    hardware: Hardware
    refused: str = ""
    """Why there is no line for FSDP2."""


def estimated(found: Measured, hardware: Hardware, most: int, refused: str = "") -> Estimate:
    """The lines for 1, 2, 4 ... processes, up to `most`; refused: why the student cannot be shared out, if so."""
    numbers = sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most})
    ways = ("DDP",) if refused else WAYS if found.teacher else WAYS[:2]
    lines = [line(found, hardware, n, way) for n in numbers for way in (("alone",) if n == 1 else ways)]
    return Estimate(lines=lines, measured=found, hardware=hardware, refused=refused)


def line(found: Measured, hardware: Hardware, processes: int, way: str) -> Line:
    """One line."""
    batch = math.ceil(found.samples / processes)
    memory = peak(found, processes, way, batch)
    compute, talk = times(found, hardware, processes, way, batch)
    hidden = HIDDEN * compute if processes > 1 else 0.0
    step = compute + max(0.0, talk - hidden)
    room = None if hardware.memory is None else ROOM * hardware.memory
    return Line(
        processes=processes,
        way=way,
        batch=batch,
        memory=memory,
        compute=compute,
        communication=talk,
        step=step,
        rate=found.samples * found.accumulate / step,
        fits=None if room is None else sum(memory.values()) <= room,
        largest=None if room is None else processes * largest(found, processes, way, room),
    )


def largest(found: Measured, processes: int, way: str, room: float) -> int:
    """The most samples of one process that fit, up to `MOST`; 0 for none."""
    low, high = 0, MOST
    while low < high:
        middle = (low + high + 1) // 2
        fits = sum(peak(found, processes, way, middle).values()) <= room
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def peak(found: Measured, processes: int, way: str, batch: int) -> dict[str, float]:
    """Bytes of one process at the moment when it has the most."""
    split = processes if way.startswith("FSDP2") else 1
    held = {
        "weights": sum(w.size / part(w, split) for w in found.weights) + found.buffers,
        "optimizer": sum(w.moments / part(w, split) for w in found.weights),
        "average": found.average / split,
        "teacher": found.teacher / (processes if way == "FSDP2, both" else 1),
    }
    each = max(moments(found, split, way, batch), key=lambda moment: sum(moment.values()))
    return {**held, **each}


def part(weight: Weight, split: int) -> int:
    """Into how many parts a weight is shared out."""
    return 1 if weight.unit is None else split


def moments(found: Measured, split: int, way: str, batch: int) -> Iterator[dict[str, float]]:
    """Gradients, activations and communication at each moment of a step."""
    weights, trail = found.weights, scaled(found.trails, batch)
    whole = {n: float(weights[n].gradient) for n, _ in trail.moments}
    shared = {n: size / part(weights[n], split) for n, size in whole.items()}
    units = {u: sum(w.size for w in weights if w.unit == u) for u in {w.unit for w in weights if w.unit is not None}}
    layers = sorted((size for unit, size in units.items() if unit >= 0), reverse=True)
    root, layer = (units.get(-1, 0), layers[0] if layers else 0) if split > 1 else (0, 0)
    buckets = sum(w.gradient for w in weights) if way == "DDP" else 0
    taught = found.gathered if way == "FSDP2, both" else 0
    again = sum(shared.values()) if found.accumulate > 1 else 0.0  # of the batches of the step before this one

    def at(gradients: float, activations: float, communication: float) -> dict[str, float]:
        return {"gradients": gradients, "activations": activations, "communication": communication}

    yield at(again, trail.forward, buckets + root + max(layer, taught))
    come, left = dict[int, float](), [n for n, _ in trail.moments]
    for number, most in trail.moments:
        unit = weights[number].unit
        gathered = root + (units[unit] if unit is not None and unit >= 0 else 0) if split > 1 else 0
        yield at(again or sum(come.values()), most, buckets + gathered)
        left.remove(number)
        come[number] = whole[number]
        mine = [n for n in come if weights[n].unit == unit]
        if split > 1 and unit is not None and not any(weights[n].unit == unit for n in left):
            others = gathered - units[unit]  # its own parameters are let go of before its gradients are sent
            scattered = sum(whole[n] for n in mine)
            yield at(again + sum(come.values()), most - whole[number], buckets + others + scattered)
            come |= {n: shared[n] for n in mine}
    yield at(sum(shared.values()), trail.after, buckets)
    yield at(sum(shared.values()), trail.left + found.temporary / split, buckets)


def scaled(trails: Sequence[Trail], batch: int) -> Trail:
    """The pass at another size of batch, along the line through the two that were measured."""
    if len(trails) == 1 or [n for n, _ in trails[0].moments] != [n for n, _ in trails[1].moments]:
        return along([trails[0]], batch)
    return along(trails, batch)


def along(trails: Sequence[Trail], batch: int) -> Trail:
    """The same, of trails with the same moments."""
    sizes = [trail.samples for trail in trails]

    def number(*values: float) -> int:
        return round(straight(sizes, values, batch))

    first = trails[0]
    noted = [(n, number(*(trail.moments[place][1] for trail in trails))) for place, (n, _) in enumerate(first.moments)]
    forward, after, left = (number(*(getattr(t, name) for t in trails)) for name in ("forward", "after", "left"))
    return Trail(batch, forward, noted, after, left)


def straight(sizes: Sequence[int], values: Sequence[float], size: int) -> float:
    """A value at another size: on a line through two, else in proportion; never less than nothing."""
    if len(sizes) == 1 or sizes[0] == sizes[1]:
        return values[0] * size / sizes[0]
    slope = (values[0] - values[1]) / (sizes[0] - sizes[1])
    return max(0.0, values[1] + slope * (size - sizes[1]))


def times(found: Measured, hardware: Hardware, processes: int, way: str, batch: int) -> tuple[float, float]:
    """Seconds of a step that are computed, and those that processes talk."""
    count = found.accumulate
    if hardware.flops is None:
        one = straight([trail.samples for trail in found.trails], found.seconds, batch)
        share = sum(w.size / part(w, processes if way.startswith("FSDP2") else 1) for w in found.weights)
        compute = count * one + found.update * share / max(1, sum(w.size for w in found.weights))
    else:
        compute = count * batch * sum(found.flops.values()) / hardware.flops
    gradients = sum(w.gradient for w in found.weights)
    student = sum(w.size for w in found.weights if w.unit is not None)
    ring = (processes - 1) / processes / hardware.bandwidth
    if way == "DDP":
        return compute, 2 * ring * gradients
    if way == "alone":
        return compute, 0.0
    # gathered for forward and again for backward, gradients scattered: in each pass
    volume = count * (2 * student + gradients) + (count * found.teacher if way == "FSDP2, both" else 0)
    return compute, ring * volume
