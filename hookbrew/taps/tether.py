"""The tether: a loss made of taps alone still reaches the model's outputs, as DDP and FSDP2 need."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hookbrew.taps.pick import fields


class Tether(torch.autograd.Function):
    """The first argument; the others become part of its graph and get no gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *ends: Tensor) -> Tensor:
        """A copy: torch lets nobody change an input that is returned as it is, as in `loss /= 2`."""
        ctx.ends = len(ends)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        """Undefined gradients, not zeros: see `tether`."""
        return *grads, *[None] * ctx.ends


def tether(value: Tensor, outputs: Any) -> Tensor:
    """The value unchanged, tied to every tensor in a model's outputs that requires grad: backward visits them too.

    DistributedDataParallel averages a bucket once the hook of each of its parameters has fired, and FSDP2 gathers a
    module's parameters when backward meets its output. Backward from captured tensors meets neither the head nor the
    model's output. DDP then stops at the second forward, or never averages (static_graph=True). FSDP2 stops in backward
    if the tensor is from inside a sharded block; with reshard_after_forward=False, and for what comes before the first
    block, it leaves each rank with gradients of its own.

    Backward gives the outputs an undefined gradient, which autograd passes on without computing. So logits of inf make
    no nan, as 0 * logits or zeros would; what is behind the taps costs no backward; and a gradient that the logits have
    is not copied. A parameter that nothing else reaches keeps grad None, but gets zeros from DDP (weight decay acts on
    them; not with find_unused_parameters=True) and in FSDP2 below the last block; a hook on it may be called with None.
    With FSDP2 all ranks have to read the same taps: they wait for each other where one has no gradient.

    Outputs are a tensor, or any nesting of tuples, lists, mappings and dataclasses. With nothing to tie, the value
    itself is returned. Source: torch's docs of DistributedDataParallel (parameters that do not take part in backward)
    and of fully_shard (hooks that gather before backward).
    """
    ends = [tensor for tensor in tensors(outputs) if tensor.requires_grad]
    tied: Tensor = Tether.apply(value, *ends) if ends else value  # type: ignore[no-untyped-call]  # torch has no types
    return tied


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors inside an output, however it is nested."""
    if isinstance(value, Tensor):
        yield value
        return
    parts = fields(value).values() or (value if isinstance(value, tuple | list) else ())
    for part in parts:
        yield from tensors(part)


def synced(model: nn.Module) -> bool:
    """Whether the model, or a part of it, averages gradients over ranks in backward: DDP or FSDP2, compiled or not."""
    return any(isinstance(m, DistributedDataParallel) for m in model.modules()) or bool(sharded(model))


def sharded(model: nn.Module) -> list[Any]:
    """The modules that FSDP2 gathers and frees: the model itself, parts of it, or none."""
    # Whoever sharded the model has imported this already; for all others the import would cost most of a second.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return [module for module in model.modules() if isinstance(module, fsdp.FSDPModule)] if fsdp else []


def gathered(model: nn.Module) -> None:
    """Gather what FSDP2 has sharded: `parameters()` are those that the graph of the last forward leads to."""
    for module in sharded(model):
        module.unshard()


def resharded(model: nn.Module) -> None:
    """Free what FSDP2 gathered for forwards that no backward followed: `parameters()` are the sharded ones again.

    Else an optimizer made then would hold what the next backward frees, and one made before would seem to be of
    another model. Source: torch's docs of fully_shard (reshard_after_forward is False for the root).
    """
    for module in sharded(model):
        module.reshard()
