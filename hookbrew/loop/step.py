"""One optimizer step: forward and backward over its batches, in parts where memory is short, then the update."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor, nn

from hookbrew.chance import randomness, restore
from hookbrew.errors import NonFiniteError
from hookbrew.loop.batch import Batch, size_of, split
from hookbrew.loop.dispatch import Dispatch
from hookbrew.loop.meter import Meter, Parts
from hookbrew.loop.state import State
from hookbrew.loop.update import Update

log = logging.getLogger("hookbrew")


class Named(Protocol):
    """A part of the loss, as far as the loop cares."""

    @property
    def name(self) -> str:
        """What it is called in logs."""


class Trainable(Protocol):
    """An objective as the loop sees it: named sums and counts, weights, and two models. It knows no loss."""

    student: nn.Module
    teacher: nn.Module | None

    @property
    def extras(self) -> nn.Module:
        """What is trained besides the student."""

    @property
    def terms(self) -> Sequence[Named]:
        """The parts of the loss."""

    @property
    def outputs(self) -> tuple[Any, Any]:
        """What student and teacher returned for the last batch."""

    def attached(self) -> AbstractContextManager[None]:
        """Hooks are on the models inside."""

    def counts(self, batch: Batch, samples: int, device: torch.device) -> Tensor:
        """Valid elements of a batch, (terms,)."""

    def forward(self, batch: Batch) -> None:
        """Run both models."""

    def sums(self, batch: Batch, counts: Tensor, progress: float) -> Tensor:
        """Sums over the valid elements of the batch that `forward` saw, (terms,)."""

    def weights(self, progress: float) -> list[float]:
        """The weight of each part at this point of the training."""

    def varying(self, progress: float) -> dict[str, float]:
        """What else moves in the course of the training, by name."""

    def predict(self, batch: Batch) -> tuple[Any, Any]:
        """The student's logits for a batch, and its labels or None."""


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
    _weights: tuple[list[float], Tensor] | None = attrs.field(init=False, default=None)
    """Those of the last step, as numbers and on the device: most never change."""

    def __call__(self, state: State, group: Sequence[Batch]) -> None:
        """Forward, backward and update; raises NonFiniteError before an update that would spoil the weights."""
        batches = [self.prepare(state, batch, position) for position, batch in enumerate(group)]
        loss, parts = self.spared(state, batches) if self.halve else self.passes(state, batches)
        try:
            self.update(state, loss)
        except NonFiniteError as error:
            raise NonFiniteError(f"{error} ({self.diagnosis(parts)}); {advice(state)}") from None
        samples = sum(map(size_of, batches))
        state.samples_seen += samples
        assert state.grad_norm is not None
        self.meter.step(parts, loss, state.grad_norm, samples)

    def spared(self, state: State, batches: Sequence[Batch]) -> tuple[Tensor, Parts]:
        """All passes, of fewer samples each when memory is short: the gradient is the same, but for rounding.

        What a failed pass drew is drawn again. Raises torch.OutOfMemoryError where one sample is too many.
        """
        while True:
            before = randomness(state.device)
            try:
                return self.passes(state, [part for batch in batches for part in split(batch, state.micro_batch_size)])
            except torch.OutOfMemoryError as error:
                largest = min(state.micro_batch_size or math.inf, max(map(size_of, batches)))
                if largest == 1:
                    error.add_note("out of memory with one sample in a forward pass: the model itself is too large")
                    raise
                state.micro_batch_size = math.ceil(largest / 2)
                log.warning("step %d: out of memory; %d samples a pass now", state.step, state.micro_batch_size)
            # the traceback of the error held the tensors, until here
            self.update.optimizer.zero_grad(set_to_none=True)
            if state.device.type == "cuda":
                torch.cuda.empty_cache()
            restore(before, state.device)

    def passes(self, state: State, batches: Sequence[Batch]) -> tuple[Tensor, Parts]:
        """Forward and backward over all batches: the loss of the step, and what it is made of."""
        counts = [self.objective.counts(batch, size_of(batch), state.device) for batch in batches]
        shares = self.shares(state, added(counts))
        losses, parts = list[Tensor](), Parts()
        for batch, valid in zip(batches, counts, strict=True):
            part, sums = self.backward(state, batch, valid, shares)
            losses.append(part)
            parts.append((sums, valid))
        return added(losses), parts

    def shares(self, state: State, totals: Tensor) -> Tensor:
        """What each term's sum is multiplied with, (terms,): its weight by the valid elements of the whole step."""
        weights = self.objective.weights(state.progress)
        if self._weights is None or weights != self._weights[0]:
            # filled number by number: a tensor made of the list would be copied to the device, and wait for it
            made = torch.stack([torch.full((), weight, dtype=totals.dtype, device=totals.device) for weight in weights])
            self._weights = weights, made
        return self._weights[1] * totals.clamp(min=1).reciprocal()

    def backward(self, state: State, batch: Batch, counts: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Add the gradients of one batch; returns its share of the step's loss, and the sums, detached."""
        state.see(batch)
        self.dispatch.fire("batch_ready", state)
        with self.autocast():
            self.objective.forward(batch)
            state.student_out, state.teacher_out = self.objective.outputs
            self.dispatch.fire("forward_end", state)
            sums = self.objective.sums(batch, counts, state.progress)
        state.loss = (sums * shares).sum()
        self.dispatch.fire("loss_end", state)
        self.update.scaler.scale(state.loss).backward()  # type: ignore[no-untyped-call]  # torch has no types here
        self.dispatch.fire("backward_end", state)
        return state.loss.detach(), sums.detach()

    def diagnosis(self, parts: Parts) -> str:
        """The mean of each loss in this step, in words."""
        sums, counts = (torch.stack(each).sum(0) for each in zip(*parts, strict=True))
        means = (sums / counts.clamp(min=1)).tolist()
        return ", ".join(f"loss/{term.name} {mean:.4g}" for term, mean in zip(self.objective.terms, means, strict=True))


def added(parts: Sequence[Tensor]) -> Tensor:
    """The sum of some tensors; of a single one itself, as most steps have one batch."""
    return parts[0] if len(parts) == 1 else torch.stack([*parts]).sum(0)


def advice(state: State) -> str:
    """What is left, and what often helps."""
    return f"the student keeps its weights of step {state.step - 1}. A smaller lr, clip_grad_norm or fp32 often helps"
