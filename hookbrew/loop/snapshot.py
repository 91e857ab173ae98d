"""All of a training at the boundary between two steps, as files; and back.

    student.safetensors     weights and buffers             extras.safetensors  projections, losses that learn
    optimizer.pt            moments, counts, rates          callbacks.pt        what callbacks remember
    train.pt                scale of fp16, sums of the next row, random states

The first two are read by `safetensors.torch.load_model`, the others by `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from safetensors import torch as safe
from torch import Tensor, nn

from hookbrew.chance import randomness, restore
from hookbrew.loop.dispatch import Dispatch
from hookbrew.loop.meter import Meter
from hookbrew.loop.rate import Rate
from hookbrew.loop.state import State
from hookbrew.loop.update import Update
from hookbrew.store import Checkpoint
from hookbrew.taps import unwrap

COUNTERS = (
    *("step", "epoch", "batches", "samples_seen", "micro_batch_size"),
    *("last_eval_step", "eval_requested", "stop_reason", "metrics"),
)
"""Fields of the state that say where a training is."""


class Resumable(Protocol):
    """What a training consists of."""

    state: State
    optimizer: torch.optim.Optimizer
    rate: Rate
    update: Update
    meter: Meter
    dispatch: Dispatch
    device: torch.device


def taken(loop: Resumable) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files of a checkpoint, and what its manifest says: the counters."""
    parts: dict[str, Any] = {
        "optimizer": loop.optimizer.state_dict(),
        "train": {
            "meter": loop.meter.state_dict(),
            "scaler": loop.update.scaler.state_dict(),
            "scheduler": None if loop.rate.scheduler is None else loop.rate.scheduler.state_dict(),
            "random": randomness(loop.device),
        },
        "callbacks": loop.dispatch.state_dict(),
    }
    counters = {name: getattr(loop.state, name) for name in COUNTERS}
    models = {"student": unwrap(loop.state.student), "extras": loop.state.extras}
    files = {f"{name}.safetensors": stored(model) for name, model in models.items()}
    return files | {f"{name}.pt": dumped(part) for name, part in parts.items()}, counters


def restored(loop: Resumable, checkpoint: Checkpoint) -> None:
    """Bring a training that has not begun to where the checkpoint was taken.

    Random states come last: whatever else is restored may draw. Raises what torch raises when the models or the
    optimizer are others, and CallbackError for other callbacks.
    """
    fill(unwrap(loop.state.student), checkpoint.read("student.safetensors"))
    fill(loop.state.extras, checkpoint.read("extras.safetensors"))
    optimizer = loaded(checkpoint, "optimizer")
    if loop.rate.scheduler is None:  # the configuration says what the rates are; the implementation too
        known = [{k: v for k, v in group.items() if k != "params"} for group in loop.optimizer.param_groups]
        optimizer["param_groups"] = [
            {**group, **mine} for group, mine in zip(optimizer["param_groups"], known, strict=True)
        ]
    load(loop.optimizer, optimizer)
    loop.dispatch.load_state_dict(loaded(checkpoint, "callbacks"))
    for name, value in checkpoint.facts.items():
        if name in COUNTERS:
            setattr(loop.state, name, value)
    train = loaded(checkpoint, "train")
    if loop.rate.scheduler is not None:
        loop.rate.scheduler.load_state_dict(train["scheduler"])
    loop.meter.load_state_dict(train["meter"])
    if train["scaler"]:  # there is none of a run that was in another precision
        loop.update.scaler.load_state_dict(train["scaler"])
    restore(train["random"], loop.device)


def load(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give an optimizer its state back, each tensor in the precision that it had.

    torch itself casts all to that of the parameters: of bf16 ones, averages that were kept in fp32 would be rounded.
    """
    optimizer.load_state_dict(dict(state))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, known in state["state"].items():
        there = optimizer.state[parameters[number]]
        for name, value in known.items():
            if isinstance(value, Tensor) and there[name].dtype != value.dtype:
                there[name] = value.to(there[name].device)


def stored(model: nn.Module) -> bytes:
    """A model's tensors as safetensors; one that has several names is stored under the first, and told in the head."""
    tensors, names, seen = dict[str, Tensor](), dict[str, str](), dict[Any, str]()
    for name, tensor in model.state_dict().items():
        known = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
        if tensor.numel() and known in seen:
            names[name] = seen[known]
        else:
            seen[known] = name
            tensors[name] = tensor.detach().cpu().contiguous().clone()  # a view of another one is stored as its own
    return ordered(safe.save(tensors, {"format": "pt", **names}))


def ordered(content: bytes) -> bytes:
    """The same tensors with what the head says besides in order: safetensors itself has it in a random one."""
    size = int.from_bytes(content[:8], "little")
    head = json.loads(content[8 : 8 + size])
    head["__metadata__"] = dict(sorted(head["__metadata__"].items()))
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, memoryview(content)[8 + size :]])


def fill(model: nn.Module, content: bytes) -> None:
    """Give a model the tensors that `stored` made bytes of; raises what torch raises for another model."""
    size = int.from_bytes(content[:8], "little")
    names = json.loads(content[8 : 8 + size])["__metadata__"]
    tensors = safe.load(content)
    model.load_state_dict(tensors | {name: tensors[kept] for name, kept in names.items() if kept in tensors})


def dumped(part: Mapping[str, Any]) -> bytes:
    """A part as bytes: torch's own writer loses the reason when a disk is full."""
    buffer = io.BytesIO()
    torch.save(dict(part), buffer)
    return buffer.getvalue()


def loaded(checkpoint: Checkpoint, name: str) -> Any:
    """A part of a checkpoint, on the CPU."""
    return torch.load(io.BytesIO(checkpoint.read(f"{name}.pt")), map_location="cpu", weights_only=True)
