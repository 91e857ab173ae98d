"""One optimizer step: forward and backward over its batches, then clip, judge and update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor, nn

from hookbrew.errors import NonFiniteError
from hookbrew.loop.batch import Batch, size_of
from hookbrew.loop.dispatch import Dispatch
from hookbrew.loop.meter import Meter
from hookbrew.loop.state import State


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


@attrs.frozen(kw_only=True)
class Step:
    """Makes one optimizer update out of a group of batches."""

    objective: Trainable
    optimizer: torch.optim.Optimizer
    dispatch: Dispatch
    meter: Meter
    prepare: Callable[[State, Batch, int], Batch]
    """Augments a batch and brings it to the device; the number tells the batches of a step apart."""
    autocast: Callable[[], AbstractContextManager[object]]
    clip: float | None = None

    def __call__(self, state: State, group: Sequence[Batch]) -> None:
        """Forward, backward and update; raises NonFiniteError before an update that would spoil the weights."""
        batches = [self.prepare(state, batch, position) for position, batch in enumerate(group)]
        counts = [self.objective.counts(batch, size_of(batch), state.device) for batch in batches]
        shares = self.shares(state, torch.stack(counts).sum(0))
        loss = torch.zeros((), device=state.device)
        for batch, valid in zip(batches, counts, strict=True):
            loss += self.backward(state, batch, valid, shares)
        self.update(state, loss)
        samples = sum(map(size_of, batches))
        state.samples_seen += samples
        assert state.grad_norm is not None
        self.meter.step(loss, state.grad_norm, samples)

    def shares(self, state: State, totals: Tensor) -> Tensor:
        """What each term's sum is multiplied with, (terms,): its weight by the valid elements of the whole step."""
        # number by number: a tensor made of them would be copied to the device, and wait for it
        weights = self.objective.weights(state.progress)
        return torch.stack([weight / total for weight, total in zip(weights, totals.clamp(min=1), strict=True)])

    def backward(self, state: State, batch: Batch, counts: Tensor, shares: Tensor) -> Tensor:
        """Add the gradients of one batch; returns its share of the step's loss, detached."""
        state.see(batch)
        self.dispatch.fire("batch_ready", state)
        with self.autocast():
            self.objective.forward(batch)
            state.student_out, state.teacher_out = self.objective.outputs
            self.dispatch.fire("forward_end", state)
            sums = self.objective.sums(batch, counts, state.progress)
        state.loss = (sums * shares).sum()
        self.dispatch.fire("loss_end", state)
        state.loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        self.dispatch.fire("backward_end", state)
        self.meter.add(sums, counts)
        return state.loss.detach()

    def update(self, state: State, loss: Tensor) -> None:
        """Clip all trained gradients together, then step, unless one of them is not finite."""
        trained = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        state.grad_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # over the ranks of FSDP2
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(trained, self.clip, state.grad_norm)
        self.dispatch.fire("grads_ready", state)
        bad = ~(torch.isfinite(state.grad_norm) & torch.isfinite(loss))
        if self.deferred(state):
            # the fused kernel skips the update by itself, and the row that is due next tells: no sync here
            self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # read by torch's fused optimizers
            self.optimizer.step()
            del self.optimizer.found_inf  # type: ignore[attr-defined]  # the user's own steps would obey it too
        elif bad:
            raise NonFiniteError(self.diagnosis(state))
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.dispatch.fire("optimizer_end", state)

    def deferred(self, state: State) -> bool:
        """Whether a step that is not finite can be skipped without asking the device."""
        return state.device.type == "cuda" and bool(self.optimizer.defaults.get("fused"))

    def diagnosis(self, state: State) -> str:
        """Which loss is not finite, in a sentence."""
        parts = ", ".join(f"{k} {v:.4g}" for k, v in self.meter.row().items() if k.startswith("loss/"))
        return (
            f"step {state.step}: a loss or gradient is not finite ({parts}); the student keeps its weights of step "
            f"{state.step - 1}. A smaller lr, clip_grad_norm or fp32 often helps"
        )
