"""Where each loss goes: the gradient that it sends into the student."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hookbrew.errors import NonFiniteError
from hookbrew.taps import gathered


def reach(losses: Mapping[str, Tensor], student: nn.Module) -> tuple[dict[str, float], list[str]]:
    """The norm of each loss's gradient in the student, and the trained tensors that no loss reaches.

    Raises NonFiniteError for a gradient that is not finite.
    """
    gathered(student)
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    norms, missed = {}, set(trained)
    for name, loss in losses.items():
        gathered(student)  # backward through the loss before has freed its parameters
        gradients = torch.autograd.grad(loss, list(trained.values()), retain_graph=True, allow_unused=True)
        reached = {k: g for k, g in zip(trained, gradients, strict=True) if g is not None}
        norms[name] = float(nn.utils.get_total_norm(reached.values()))
        if not math.isfinite(norms[name]):
            raise NonFiniteError(f"loss {name!r}: its gradient in the student is {norms[name]} on the first batch")
        missed -= set(reached)
    return norms, [name for name in trained if name in missed]
