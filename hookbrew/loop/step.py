"""One optimizer step: forward and backward over its batches, in parts where memory is short, then the update.

Several processes divide by what is valid in the batches of all of them, so that k processes have the gradient of one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import attrs
import torch
from torch import Tensor

from hookbrew.chance import randomness, restore
from hookbrew.errors import NonFiniteError
from hookbrew.loop.batch import SHARE, Batch, Share, counted, size_of, split
from hookbrew.loop.device import autocast
from hookbrew.loop.dispatch import Dispatch
from hookbrew.loop.joint import Replica, replicated
from hookbrew.loop.meter import Meter, Parts
from hookbrew.loop.state import State
from hookbrew.loop.trainable import Trainable
from hookbrew.loop.training import Training
from hookbrew.loop.update import Update
from hookbrew.ranks import Ranks

log = logging.getLogger("hookbrew")


@attrs.define(kw_only=True)
class Step:
    """Makes one optimizer update out of a group of batches."""

    objective: Trainable
    update: Update
    dispatch: Dispatch
    meter: Meter
    prepare: Callable[[State, Batch, int], Batch]
    """Augments a batch and brings it to the device; the number tells the batches of a step apart."""
    autocast: Callable[[], AbstractContextManager[object]]
    halve: bool = False
    """Whether a forward pass that is out of memory is made again with half the samples, now and from now on."""
    replica: Replica = attrs.field(factory=Replica)
    """What averages gradients over processes."""

    def __call__(self, state: State, group: Sequence[Batch]) -> None:
        """Forward, backward and update; raises NonFiniteError before an update that would spoil the weights."""
        self.replica.ready()
        batches = [self.prepare(state, batch, position) for position, batch in enumerate(group)]
        own, parts = self.spared(state, batches) if self.halve else self.passes(state, batches)
        loss = state.ranks.total(own)
        self.replica.average()
        try:
            self.update(state, loss)
        except NonFiniteError as error:
            raise NonFiniteError(f"{error} ({self.diagnosis(state, parts, loss)}); {advice(state)}") from None
        samples = samples_of(batches, state.ranks)
        state.samples_seen += samples
        assert state.grad_norm is not None
        self.meter.step(parts, loss, state.grad_norm, samples)

    def spared(self, state: State, batches: Sequence[Batch]) -> tuple[Tensor, Parts]:
        """All passes, of fewer samples each when memory is short: the gradient is the same, but for rounding.

        What a failed pass drew is drawn again; where one process fails, all do it again. Raises torch.OutOfMemoryError
        where one sample is too many.
        """
        while True:
            before = randomness(state.device)
            found, lacking = None, None
            try:
                found = self.passes(state, [p for batch in batches for p in split(batch, state.micro_batch_size)])
            except torch.OutOfMemoryError as error:
                lacking = error.with_traceback(None)  # it held the tensors
            whole = max(map(size_of, batches))
            largest = min(state.micro_batch_size or whole, whole)
            if not (short := state.ranks.most([largest if lacking else 0])[0]):
                assert found is not None
                return found
            if short == 1:
                lacking = lacking or torch.OutOfMemoryError("out of memory in another process")
                lacking.add_note("out of memory with one sample in a forward pass: the model itself is too large")
                raise lacking
            state.micro_batch_size = math.ceil(short / 2)
            log.warning("step %d: out of memory; %d samples a pass now", state.step, state.micro_batch_size)
            found = None
            self.update.optimizer.zero_grad(set_to_none=True)
            if state.device.type == "cuda":
                torch.cuda.empty_cache()
            restore(before, state.device)

    def passes(self, state: State, batches: Sequence[Batch]) -> tuple[Tensor, Parts]:
        """Forward and backward over all batches: this process's part of the loss, and what it is made of."""
        if len(batches) == state.ranks.size == 1:
            return self.alone(state, batches[0])
        counts = [self.counts(batch, state.device) for batch in batches]
        totals = state.ranks.total(added(counts)).clamp(min=1)
        losses, parts = list[Tensor](), Parts()
        for place, (batch, valid) in enumerate(zip(batches, counts, strict=True)):
            with self.replica.waiting(last=place == len(batches) - 1):
                part, means = self.backward(state, batch, valid, totals)
            losses.append(part)
            parts.append((means, valid))
        return added(losses), parts

    def alone(self, state: State, batch: Batch) -> tuple[Tensor, Parts]:
        """`passes` over the one batch of one process: its means are those of the step, and need no shares."""
        state.see(batch)
        self.dispatch.fire("batch_ready", state)
        with self.autocast():
            self.seen(state, batch)
            state.loss, means, counts = self.objective.weighed(batch, size_of(batch), state.progress)
        self.descend(state, state.loss)
        own = state.loss if state.loss._base is None else state.loss.clone()  # one of many would keep all until its row
        return own.detach(), [(means, counts)]

    def counts(self, batch: Batch, device: torch.device) -> Tensor:
        """What is valid in a batch for each term, (terms,); nothing of one that is only run along."""
        found = self.objective.counts(batch, size_of(batch), device)
        return found if counted(batch) else torch.zeros_like(found)

    def forward(self, state: State, batch: Batch, counts: Tensor, totals: Tensor) -> tuple[Tensor, Tensor]:
        """A batch's part of the loss, and the means of all terms, detached, (terms,)."""
        with self.autocast():
            self.seen(state, batch)
            return self.objective.part(batch, counts, totals, state.progress)

    def seen(self, state: State, batch: Batch) -> None:
        """Both models run on a batch."""
        state.student_out = state.teacher_out = None  # those of the batch before are as large as these
        self.objective.forward(batch)
        state.student_out, state.teacher_out = self.objective.outputs
        self.dispatch.fire("forward_end", state)

    def descend(self, state: State, loss: Tensor) -> None:
        """Add the gradients of a loss."""
        self.dispatch.fire("loss_end", state)
        scaled = self.update.scaler.scale(loss) if self.update.scaling else loss
        scaled.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        self.dispatch.fire("backward_end", state)

    def backward(self, state: State, batch: Batch, counts: Tensor, totals: Tensor) -> tuple[Tensor, Tensor]:
        """Add the gradients of one batch; returns its share of the step's loss, and the means, detached.

        totals: what is valid for each term in the whole step, at least 1, (terms,).
        """
        state.see(batch)
        self.dispatch.fire("batch_ready", state)
        state.loss, means = self.replica.run(self.forward, state, batch, counts, totals)
        # gradients are averaged over processes, and are to be summed
        self.descend(state, state.loss if state.ranks.size == 1 else state.loss * state.ranks.size)
        return state.loss.detach(), means

    def diagnosis(self, state: State, parts: Parts, loss: Tensor) -> str:
        """The mean of each loss in this step, in words."""
        meter = Meter([term.name for term in self.objective.terms], state.device)
        meter.step(parts, loss, loss, 0)
        told = meter.row(state.ranks.total)
        return ", ".join(f"{name} {mean:.4g}" for name, mean in told.items() if name.startswith("loss/"))


def stepping(loop: Training) -> Step:
    """What makes the steps of a training, in as many processes as there are."""
    halve = loop.train.out_of_memory == "halve"
    step = Step(
        objective=loop.objective,
        update=loop.update,
        dispatch=loop.dispatch,
        meter=loop.meter,
        prepare=loop.prepared,
        autocast=partial(autocast, loop.train.precision, loop.device),
        halve=halve,
    )
    step.replica = replicated(loop.objective, loop.state, step.forward, halve=halve, fresh=not loop.state.step)
    return step


def samples_of(batches: Sequence[Batch], ranks: Ranks) -> int:
    """The samples of a step, of all processes together: a batch that is shared out says it, of others all are asked."""
    if ranks.size == 1:
        return sum(map(size_of, batches))
    shares: list[Share | None] = [batch.get(SHARE) for batch in batches]
    told = [share.whole for share in shares if share is not None]
    return sum(told) if len(told) == len(batches) else ranks.sum(sum(map(size_of, batches)))


def added(parts: Sequence[Tensor]) -> Tensor:
    """The sum of some tensors; of a single one itself, as most steps have one batch."""
    return parts[0] if len(parts) == 1 else torch.stack([*parts]).sum(0)


def advice(state: State) -> str:
    """What is left, and what often helps."""
    return f"the student keeps its weights of step {state.step - 1}. A smaller lr, clip_grad_norm or fp32 often helps"
