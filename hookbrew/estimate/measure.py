"""One step of a training, made here: what it has in memory when, what it computes, and how long that takes.

The step is the real one, with the real optimizer, on the first batch of the data. Nothing is written, and the models
are not used afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from hookbrew import factory
from hookbrew.estimate.live import Bytes, watched
from hookbrew.estimate.operations import clock, operations
from hookbrew.estimate.sizes import Weight, dropping, nbytes, taught, weighed
from hookbrew.fitting import Fitting
from hookbrew.loop import Batch, Loop, State, size_of, split
from hookbrew.loop.device import threads
from hookbrew.loop.step import Step, stepping
from hookbrew.prepare import Prepared

ROUNDS = 3
"""Steps that are timed, after one that is not."""
AVERAGED = "ema"
"""The callback that has an average of the student, of its size."""


@attrs.frozen
class Trail:
    """What a forward and backward pass had in memory beyond weights and gradients, in the order of the pass."""

    samples: int
    forward: int
    """The most until the loss was known."""
    moments: Sequence[tuple[int, int]]
    """For each gradient, as it came: the number of its weight, and the most since the one before."""
    after: int
    """The most when all were there."""
    left: int
    """What stays until the next pass: outputs, and the batch."""


@attrs.frozen(kw_only=True)
class Measured:
    """All that is known of a stage."""

    weights: Sequence[Weight]
    buffers: int
    teacher: int
    """Bytes of all teachers."""
    gathered: int
    """The most that FSDP2 would gather of a teacher at one time."""
    average: int
    temporary: int
    """What the optimizer's step has in memory for itself."""
    trails: Sequence[Trail]
    """At the whole batch and at half of it."""
    accumulate: int
    samples: int
    """In a batch of the configuration, over all processes."""
    seconds: Sequence[float]
    """Of a pass, for each trail."""
    update: float
    """Seconds of the optimizer's step, the norm of the gradients included."""
    flops: Mapping[str, float]
    """For each sample: `teacher`, `student`, `losses` forward, and `backward`."""
    facts: Mapping[str, Any] = attrs.field(factory=dict)


class Meter:
    """A callback that looks at memory and clock where the loss is known, and around the optimizer's step."""

    teaches: ClassVar[bool] = True  # a teacher that another callback needs is no mistake here

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.bytes: Bytes | None = None
        self.forward = self.temporary = self._before = 0
        self.times = dict[str, float]()

    def loss_end(self, state: State) -> None:
        """The forward pass is over."""
        if self.bytes is not None:
            self.forward = self.bytes.since()

    def grads_ready(self, state: State) -> None:
        """The optimizer's step begins."""
        if self.bytes is not None:
            self._before = self.bytes.now()
            self.bytes.since()
        self._note("grads_ready")

    def optimizer_end(self, state: State) -> None:
        """It is over."""
        if self.bytes is not None:
            self.temporary = max(0, self.bytes.since() - self._before)
        self._note("optimizer_end")

    def backward_end(self, state: State) -> None:
        """All gradients of a batch are there."""
        self._note("backward_end")

    def _note(self, what: str) -> None:
        self.times[what] = clock(self._device)


def measured(prepared: Prepared) -> Measured:
    """Make some steps of a stage, and say what they took; of several tasks the memory is that of the largest.

    Raises what training raises.
    """
    config, distillation = prepared.experiment, prepared.distillation
    optimizer = factory.optimizer(config.optimizer, distillation.student.parameters())
    meter = Meter(next(distillation.student.parameters()).device)
    fitting = Fitting(train=config.train, optimizer=optimizer, callbacks=[("plan", meter)])
    loop = distillation.loop(prepared.feed, fitting)
    with ExitStack() as stack:
        stack.enter_context(threads(config.train.threads))
        stack.enter_context(loop.objective.attached())
        loop.state.student.train()
        loop.objective.extras.train()
        step = stepping(loop)
        stack.callback(step.replica.close)
        parts = [halves(batch) for batch in prepared.first]
        timed = [[timings(loop, step, meter, part) for part in each] for each in parts]
        temporary = peaked(loop, step, meter, parts[0][0])
        known = weighed(loop)
        trails = [[trail(loop, step, meter, part) for part in each] for each in parts]
        found = [operations(loop, step, each[-1]) for each in parts]
    largest = max(range(len(trails)), key=lambda place: trails[place][0].forward)
    many, places = len(parts), range(len(trails[largest]))
    flops = {name: sum(each[name] for each in found) / many for name in found[0]}
    seconds = [sum(task[min(place, len(task) - 1)][0] for task in timed) / many for place in places]
    return Measured(
        weights=known,
        buffers=sum(map(nbytes, loop.state.student.buffers())),
        **taught(distillation.objective.teacher, loop.state.student),
        average=sum(w.size for w in known if w.unit is not None) if averaged(prepared) else 0,
        temporary=temporary,
        trails=trails[largest],
        accumulate=config.train.accumulate,
        samples=size_of(prepared.first[largest]),
        seconds=seconds,
        update=median(part[1] for task in timed for part in task),
        flops=flops,
        facts={"device": str(loop.device), "torch": torch.__version__, "threads": torch.get_num_threads()},
    )


def halves(batch: Batch) -> list[Batch]:
    """The batch, and its first half if it has one."""
    size = size_of(batch)
    return [batch, next(split(batch, (size + 1) // 2))] if size > 1 else [batch]


def averaged(prepared: Prepared) -> bool:
    """Whether an average of the student is kept beside it."""
    return any(component.type == AVERAGED for component in prepared.experiment.callbacks)


def timings(loop: Loop, step: Step, meter: Meter, batch: Batch) -> tuple[float, float]:
    """Seconds of a pass and of the update, the medians of some steps."""
    passes, updates = [], []
    for place in range(1 + ROUNDS):
        advance(loop)
        began = clock(loop.device)
        step(loop.state, [batch])
        if place:
            passes.append(meter.times["backward_end"] - began)
            updates.append(meter.times["optimizer_end"] - meter.times["backward_end"])
    return median(passes), median(updates)


def advance(loop: Loop) -> None:
    """Another step begins."""
    loop.state.step += 1
    loop.rate.set(0.0)


def peaked(loop: Loop, step: Step, meter: Meter, batch: Batch) -> int:
    """What the optimizer's step has in memory, beyond what it keeps."""
    with watched(loop.device) as meter.bytes:
        advance(loop)
        step(loop.state, [batch])
    meter.bytes = None
    return meter.temporary


def trail(loop: Loop, step: Step, meter: Meter, batch: Batch) -> Trail:
    """Two passes, the second of which is looked at: what the first has left is there, as in any step but the first.

    Each gradient is dropped when it came, so that what is counted is all else.
    """
    moments = list[tuple[int, int]]()
    ready = step.prepare(loop.state, batch, 0)
    with watched(loop.device) as counted, dropping(loop, moments, counted):
        meter.bytes = counted
        step.passes(loop.state, [ready])
        moments.clear()
        counted.since()
        step.passes(loop.state, [ready])
        after, left = counted.since(), counted.now()
        meter.bytes = None
    own = sum(nbytes(value) for value in ready.values() if isinstance(value, Tensor))
    noted = [(number, most + own) for number, most in moments]
    return Trail(size_of(batch), meter.forward + own, noted, after + own, left + own)
