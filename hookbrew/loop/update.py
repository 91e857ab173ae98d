"""The update: clip, judge, step. Nothing that is not finite ever reaches a weight."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn

from hookbrew.config import Train
from hookbrew.errors import NonFiniteError
from hookbrew.loop.dispatch import Dispatch
from hookbrew.loop.meter import spoilt
from hookbrew.loop.state import State


@attrs.frozen(kw_only=True)
class Update:
    """Makes one step of the optimizer out of the gradients that are there."""

    optimizer: torch.optim.Optimizer
    dispatch: Dispatch
    scaler: torch.amp.GradScaler
    """Of fp16; one that is not enabled passes everything through."""
    clip: float | None = None
    nonfinite: Literal["stop", "skip"] = "stop"

    @cached_property
    def scaling(self) -> bool:
        """Whether losses are scaled."""
        return self.scaler.is_enabled()

    @property
    def skipping(self) -> bool:
        """Whether an update that is not finite is left out and the training goes on; of fp16 it always does."""
        return self.nonfinite == "skip" or self.scaling

    def __call__(self, state: State, loss: Tensor) -> None:
        """Move the weights by the gradients, which are gone afterwards.

        Raises NonFiniteError before an update that would spoil the weights, unless those are left out.
        """
        if self.scaling:
            self.scaler.unscale_(self.optimizer)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        state.grad_norm = length([grad for p in trained if (grad := p.grad) is not None])
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(trained, self.clip, state.grad_norm)
        self.dispatch.fire("grads_ready", state)
        self.step(state, state.grad_norm, loss)
        for parameter in trained:
            parameter.grad = None  # as zero_grad does, at several times the cost
        self.dispatch.fire("optimizer_end", state)

    def step(self, state: State, norm: Tensor, loss: Tensor) -> None:
        """The optimizer's step, unless something is not finite."""
        if self.deferred(state):
            # the fused kernel leaves the step out by itself, and the row that is due next tells: no sync here
            self.optimizer.found_inf = spoilt(norm, loss).float()  # type: ignore[attr-defined]  # read by torch's fused optimizers
            self.optimizer.step()
            del self.optimizer.found_inf  # type: ignore[attr-defined]  # the user's own steps would obey it too
        elif sound(norm, loss):
            self.optimizer.step()
        elif not self.skipping:
            raise NonFiniteError(f"step {state.step}: a loss or gradient is not finite")
        if self.scaling:
            self.scaler.update()

    def deferred(self, state: State) -> bool:
        """Whether a step that is not finite can be left out without asking the device."""
        return state.device.type == "cuda" and bool(self.optimizer.defaults.get("fused"))


def length(gradients: list[Tensor]) -> Tensor:
    """The norm of all gradients together, a scalar, over the ranks of FSDP2 too: that of the norms of each.

    As torch's get_total_norm, which first asks of each tensor where it is: as slow as all the rest where models are
    small.
    """
    kinds = {(type(gradient), gradient.device, gradient.dtype) for gradient in gradients}
    if len(kinds) == 1 and type(gradients[0]) is Tensor:
        norm: Any = torch.linalg.vector_norm(torch.stack([*torch._foreach_norm(gradients)]))
    else:
        norm = nn.utils.get_total_norm(gradients)
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole


def sound(norm: Tensor, loss: Tensor) -> bool:
    """Whether both are finite: asks the device, where that is not the CPU once for both."""
    if norm.device.type == "cpu":
        return math.isfinite(norm.item()) and math.isfinite(loss.item())
    return not spoilt(norm, loss)


def updating(train: Train, optimizer: torch.optim.Optimizer, dispatch: Dispatch, device: torch.device) -> Update:
    """What `[train]` says of updates.

    In fp16, losses are multiplied before backward and gradients divided after it, so that these do not vanish.
    """
    return Update(
        optimizer=optimizer,
        dispatch=dispatch,
        scaler=torch.amp.GradScaler(device.type, enabled=train.precision == "fp16"),
        clip=train.clip_grad_norm,
        nonfinite=train.nonfinite,
    )
