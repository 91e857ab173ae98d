"""All of a training at the boundary between two steps, as files; and back.

    student.safetensors     weights and buffers             extras.safetensors  projections, losses that learn
    optimizer.pt            moments, counts, rates          callbacks.pt        what callbacks remember
    train.pt                scale of fp16, sums of the next row, random states
    rank-1.pt, ...          the sums, random states and buffers of the other processes
    shards/                 in place of the first two, and of moments, where FSDP2 has sharded them

The first two are read by `safetensors.torch.load_model`, the others by `torch.load(weights_only=True)`, and the shards
by torch.distributed.checkpoint.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import torch as safe
from torch import Tensor, nn

from hookbrew import words
from hookbrew.chance import randomness, restore, sow
from hookbrew.errors import ResumeError
from hookbrew.loop.order import mix
from hookbrew.loop.shards import got, parted, spread, whole
from hookbrew.loop.training import Training
from hookbrew.store import Checkpoint
from hookbrew.taps import unwrap

COUNTERS = (
    *("step", "epoch", "batches", "samples_seen", "micro_batch_size"),
    *("last_eval_step", "eval_requested", "stop_reason", "metrics"),
)
"""Fields of the state that say where a training is."""


def taken(loop: Training) -> tuple[dict[str, bytes], dict[str, Any], dict[str, Tensor]]:
    """The files of a checkpoint, what its manifest says (the counters), and the tensors that FSDP2 has sharded.

    All processes call this together, and the first one is given the files of all.
    """
    models = modelled(loop)
    shards, optimizer = parted(models, loop.optimizer)
    parts: dict[str, Any] = {
        "optimizer": optimizer,
        "train": {
            "scaler": loop.update.scaler.state_dict(),
            "scheduler": None if loop.rate.scheduler is None else loop.rate.scheduler.state_dict(),
            **own(loop),
            "buffers": buffers(models) if shards else {},  # of those among the shards, nobody knows whose they are
        },
        "callbacks": whole(loop.dispatch.state_dict()),
    }
    others = loop.ranks.gathered(dumped({**own(loop), "buffers": buffers(models)}))[1:] if loop.ranks.size > 1 else []
    counters = {name: getattr(loop.state, name) for name in COUNTERS}
    if not loop.ranks.main:
        return {}, counters, shards
    files = {} if shards else {f"{name}.safetensors": stored(model.state_dict()) for name, model in models.items()}
    files |= {f"{name}.pt": dumped(part) for name, part in parts.items()}
    files |= {f"rank-{rank}.pt": content for rank, content in enumerate(others, start=1)}
    return files, {**counters, "ranks": loop.ranks.size}, shards


def modelled(loop: Training) -> dict[str, nn.Module]:
    """What is trained, by the names of its files."""
    return {"student": unwrap(loop.state.student), "extras": loop.state.extras}


def own(loop: Training) -> dict[str, Any]:
    """What each process has for itself."""
    return {"meter": loop.meter.state_dict(), "random": randomness(loop.device)}


def buffers(models: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """What each process counts for itself, as the statistics of batch norm."""
    return {f"{kind}.{name}": buffer for kind, model in models.items() for name, buffer in model.named_buffers()}


def restored(loop: Training, checkpoint: Checkpoint) -> None:
    """Bring a training that has not begun to where the checkpoint was taken.

    Random states come last: whatever else is restored may draw. Raises what torch raises when the models or the
    optimizer are others, and CallbackError for other callbacks.
    """
    models = modelled(loop)
    if "student.safetensors" in checkpoint.files:
        for name, model in models.items():
            fill(model, checkpoint.read(f"{name}.safetensors"))
        optimizer = loaded(checkpoint, "optimizer")
    else:
        optimizer = got(checkpoint, models, loop.optimizer, loop.ranks)
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
    if train["scaler"]:  # there is none of a run that was in another precision
        loop.update.scaler.load_state_dict(train["scaler"])
    regained(loop, checkpoint, train)


def regained(loop: Training, checkpoint: Checkpoint, train: Mapping[str, Any]) -> None:
    """What each process had for itself; as many as there were before go on exactly.

    Of others the first has what all had counted, and each draws from now on in its own way.
    """
    ranks, before = loop.ranks, checkpoint.facts.get("ranks", 1)
    mine = train if ranks.main or ranks.size != before else loaded(checkpoint, f"rank-{ranks.rank}")
    there = buffers(modelled(loop))
    for name, buffer in mine.get("buffers", {}).items():
        there[name].copy_(buffer)
    if ranks.size == before:
        loop.meter.load_state_dict(mine["meter"])
        restore(mine["random"], loop.device)
        return
    meters = [train["meter"], *(loaded(checkpoint, f"rank-{rank}")["meter"] for rank in range(1, before))]
    loop.meter.load_state_dict(meters[0])
    loop.meter.share(meters[1:] if ranks.main else None)
    restore(train["random"], loop.device)
    if not ranks.main:
        sow(mix(int(torch.randint(2**31, ())), "rank", ranks.rank))


def load(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give an optimizer its state back, each tensor in the precision that it had.

    torch itself casts all to that of the parameters: of bf16 ones, averages that were kept in fp32 would be rounded.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, known in state["state"].items():
        like = parameters[number]
        known |= {n: spread(t, like) for n, t in known.items() if isinstance(t, Tensor) and t.shape == like.shape}
    optimizer.load_state_dict(dict(state))
    for number, known in state["state"].items():
        there = optimizer.state[parameters[number]]
        for name, value in known.items():
            if isinstance(value, Tensor) and there[name].dtype != value.dtype:
                there[name] = value.to(there[name].device)


def stored(state: Mapping[str, Tensor]) -> bytes:
    """The tensors of a model as safetensors; one of several names is stored under the first, and told in the head."""
    tensors, names, seen = dict[str, Tensor](), dict[str, str](), dict[Any, str]()
    for name, tensor in state.items():
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
    """Give a model the tensors that `stored` made bytes of; ResumeError for another model."""
    size = int.from_bytes(content[:8], "little")
    names = json.loads(content[8 : 8 + size])["__metadata__"]
    tensors = safe.load(content)
    tensors |= {name: tensors[kept] for name, kept in names.items() if kept in tensors}
    there = model.state_dict()
    other = [name for name in sorted({**there, **tensors}) if sized(there.get(name)) != sized(tensors.get(name))]
    if other:
        raise ResumeError(
            f"the checkpoint is of another {type(model).__name__}, which differs in {words.several(other, most=3)};"
            " resume with the model that it was, its [[surgery]] included"
        )
    model.load_state_dict({name: spread(t, there[name]) if name in there else t for name, t in tensors.items()})


def sized(tensor: Tensor | None) -> tuple[int, ...] | None:
    """The shape of a tensor; None where there is none."""
    return None if tensor is None else tuple(tensor.shape)


def dumped(part: Mapping[str, Any]) -> bytes:
    """A part as bytes: torch's own writer loses the reason when a disk is full."""
    buffer = io.BytesIO()
    torch.save(dict(part), buffer)
    return buffer.getvalue()


def loaded(checkpoint: Checkpoint, name: str) -> Any:
    """A part of a checkpoint, on the CPU."""
    return torch.load(io.BytesIO(checkpoint.read(f"{name}.pt")), map_location="cpu", weights_only=True)
