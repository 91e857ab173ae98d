"""Losses on large logits without their copies: row by row in buffers, with one tensor as large, the gradient itself.

B batch, L tokens, C classes, N rows (B or B L). Values and gradients are those of the functions that are decorated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from hookbrew.objective import Side
from hookbrew_plugins.losses.chunked import BUFFER, evened, widest
from hookbrew_plugins.losses.shapes import require_mask, require_same
from hookbrew_plugins.losses.slopes import Pool
from hookbrew_plugins.losses.soften import require_temperature
from hookbrew_plugins.losses.walk import SHARES, Plan, Term, held, measured

Loss = Callable[..., Tensor]


def sparing(function: Loss) -> Loss:
    """A loss on two logits, of a name that a chunked loss has, which large ones take in chunks of rows."""
    options, share = dict(function.__kwdefaults__ or {}), {"jsd": "beta"}.get(function.__name__, "skew")

    @wraps(function)
    def made(student: Tensor, teacher: Tensor, mask: Tensor | None = None, **given: Any) -> Tensor:
        if student.numel() * torch.float32.itemsize <= BUFFER or not able(student, **given):
            return function(student, teacher, mask, **given)
        if student.dim() < 2 or student.shape != teacher.shape:
            require_same(student, teacher, "classes")
        require_mask(student, mask)
        chosen = {**options, **given}
        term = Term(
            function.__name__,
            temperature=chosen["temperature"],
            t_squared=chosen["t_squared"],
            share=chosen[share] if function.__name__ in SHARES else None,
        )
        if isinstance(term.temperature, Tensor):
            require_temperature(student, term.temperature)
        found: Tensor = Rows.apply(student, teacher.detach(), mask, (term, partial(function, **given)))  # type: ignore[no-untyped-call]
        return found

    return made


def able(student: Tensor, *, standardize: bool = False, temperature: Any = 1.0, **_: Any) -> bool:
    """Whether rows can be taken one after the other: not inside transforms and compiled code, or of sharded tensors."""
    learning = isinstance(temperature, Tensor) and temperature.requires_grad
    plain = type(student) is Tensor and not torch.compiler.is_compiling()
    return plain and not (standardize or learning) and torch._C._functorch.peek_interpreter_stack() is None


class Rows(Function):
    """The gradient is made in the forward, chunk by chunk, and scaled in the backward."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, mask: Tensor | None, told: tuple[Term, Loss]) -> Tensor:
        """The mean over the valid rows, a scalar; told: which loss it is, and the loss on whole tensors."""
        term, ctx.dense = told
        kind, slope = held(student, torch.float32), None
        if ctx.needs_input_grad[0]:
            slope = torch.empty_like(student, dtype=kind, memory_format=torch.contiguous_format)
        found = walked(student, teacher, mask, term, slope)
        ctx.save_for_backward(student, slope, teacher, mask)  # let go of by a backward, as no closure would be
        return found

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        """The gradient, times that of the mean; with derivatives of its own where somebody may ask for them."""
        (grad,), (student, slope, teacher, mask) = upstream, ctx.saved_tensors
        if torch.is_grad_enabled():
            whole = ctx.dense(student, teacher, mask)
            return (*torch.autograd.grad(whole, student, grad, create_graph=True), None, None, None)
        if torch._C._autograd._get_current_graph_task_keep_graph():
            return slope * grad.to(slope.dtype), None, None, None
        return slope.mul_(grad), None, None, None  # nobody asks for it again


def walked(student: Tensor, teacher: Tensor, mask: Tensor | None, term: Term, slope: Tensor | None) -> Tensor:
    """The mean over the valid rows, a scalar; its gradient goes to slope, (..., C)."""
    ours, theirs = (logits.reshape(-1, logits.shape[-1]) for logits in (student, teacher))
    number, classes = ours.shape
    wide = widest(Side(ours, ours), Side(theirs, theirs))
    size = evened(number, max(1, BUFFER // (classes * wide.itemsize)))
    plan = Plan(None, (term,), None, None, number, size, wide, None, slope is not None)
    pool, total = Pool(classes, wide, student.device), student.new_zeros((), dtype=wide)
    kept = None if mask is None else mask.flatten()
    count = max(1, number) if kept is None else kept.sum(dtype=wide).clamp(min=1)
    for start in range(0, number, size):
        pick = slice(start, min(start + size, number))
        pool.fit(pick.stop - start)
        pair = [side[pick] if side.dtype == wide else pool.take().copy_(side[pick]) for side in (ours, theirs)]
        found, make, scale = measured(term, plan, (pair[0], pair[1]), (pick, pool, False))
        valid = None if kept is None else kept[pick]
        total += (found if valid is None else found.masked_fill(~valid, 0.0)).sum() / count
        if slope is not None:
            made = make().mul_(scale / count)
            if valid is not None:
                made.masked_fill_(~valid.unsqueeze(-1), 0.0)
            slope.view(-1, classes)[pick] = made
    return total
