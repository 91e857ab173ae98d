"""Scores of an attention out of its queries and keys, with a graph that keeps these as the model has them.

B batch, H heads, L queries, S keys, D features of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.forward_ad import unpack_dual


def products(q: Tensor, k: Tensor, scale: float, shared: int = 1) -> Tensor:
    """q k^T scaled, in fp32 at least: q (B, H, L, D) and k (B, H / shared, S, D) to (B, H, L, S)."""
    alike = q.shape[:-3] == k.shape[:-3] and (q.dim() < 3 or q.shape[-3] == shared * k.shape[-3])
    if torch.is_grad_enabled() and alike and bare(q) and bare(k):
        found: Tensor = Products.apply(q, k, scale, shared)  # type: ignore[no-untyped-call]  # torch has no types here
        return found
    return multiplied(q, k, scale, shared)


def multiplied(q: Tensor, k: Tensor, scale: float, shared: int) -> Tensor:
    """`products` as torch has it."""
    q, k = (wide(q) * scale).contiguous(), wide(k)  # as matmul would lay it out, beside what it was then
    if shared == 1:
        return q @ k.mT
    grouped = q.reshape(*q.shape[:-3], k.shape[-3], shared, *q.shape[-2:])
    return (grouped @ k.unsqueeze(-3).mT).flatten(-4, -3)


class Products(Function):
    """`multiplied`, which keeps for its backward what it was given: a kernel of the model's keeps that too.

    A matmul would keep a copy of each: queries are scaled, keys laid out one head after the other, or in fp32.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, scale: float, shared: int) -> Tensor:
        """Scores, (B, H, L, S)."""
        ctx.save_for_backward(q, k)
        ctx.scale, ctx.shared = scale, shared
        return multiplied(q, k, scale, shared)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Of operations that have gradients themselves."""
        q, k = ctx.saved_tensors
        (slope,), own, other = upstream, None, None
        if ctx.shared > 1:
            slope = rows(slope, ctx.shared)
        if ctx.needs_input_grad[0]:
            own = ((slope @ wide(k)).reshape(q.shape) * ctx.scale).to(q.dtype)
        if ctx.needs_input_grad[1]:
            scaled = wide(q) * ctx.scale
            other = (slope.mT @ (rows(scaled, ctx.shared) if ctx.shared > 1 else scaled)).to(k.dtype)
        return own, other, None, None


def rows(heads: Tensor, shared: int) -> Tensor:
    """The rows of heads that share a key one below the other: (B, H, L, X) to (B, H / shared, shared L, X)."""
    *before, number, length, width = heads.shape
    return heads.reshape(*before, number // shared, shared * length, width)


def bare(tensor: Tensor) -> bool:
    """Whether a tensor is nothing more: of no class of its own, in no transform, compiled code, forward derivative."""
    if type(tensor) is not Tensor or torch.compiler.is_compiling():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return unpack_dual(tensor).tangent is None  # type: ignore[no-untyped-call]  # torch leaves it without annotations


def wide(tensor: Tensor) -> Tensor:
    """In fp32 where it was less."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
