"""What can be read of models, of random states and of a training's state, by name, to compare it later."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from hookbrew.loop import State

Facts = dict[str, Any]
LENT = ("student", "teacher", "announce", "folder", "device", "record", "metrics", "exception", "store", "batches")
"""Fields of the state that are written down in another way, or not at all."""
ASKED = ("stop_reason", "eval_requested", "save_requested", "last_eval_step", "partial")
"""Fields that a request of a callback changes, or what it says of itself."""
MEASURED = ("eval_end", "run_end")
"""Events at which metrics are those of the same evaluation, also if there was one more before."""
PASSING = {
    "batch": ("batch_ready", "forward_end", "loss_end", "backward_end", "eval_batch_end"),
    "student_out": ("forward_end", "loss_end", "backward_end"),
    "teacher_out": ("forward_end", "loss_end", "backward_end"),
    "logits": ("eval_batch_end",),
    "labels": ("eval_batch_end",),
}
"""Fields that say something in some events only; in others an evaluation, that was asked for, may have left them."""
PLAIN = (Tensor, Mapping, list, tuple, str, int, float, type(None))


def tensors(models: Mapping[str, nn.Module]) -> Facts:
    """Parameters, buffers and gradients by name."""
    found: Facts = {}
    for name, model in models.items():
        found |= {f"{name}.{key}": tensor for key, tensor in model.state_dict().items()}
        found |= {f"the gradient of {name}.{key}": p.grad for key, p in model.named_parameters() if p.grad is not None}
    return found


def randomness() -> Facts:
    """The states of the generators that everyone shares."""
    found: Facts = {"torch": torch.get_rng_state(), "Python": str(random.getstate())}
    if (numpy := sys.modules.get("numpy")) is not None:
        _, keys, *rest = numpy.random.get_state()
        found["NumPy"] = (keys.tobytes(), *rest)
    return found


def modes(models: Mapping[str, nn.Module]) -> Facts:
    """Whether each module trains, and each parameter is trained."""
    found: Facts = {}
    for name, model in models.items():
        found |= {f"{path(name, key)}.training": module.training for key, module in model.named_modules()}
        found |= {f"{path(name, key)}.requires_grad": p.requires_grad for key, p in model.named_parameters()}
    return found


def hooks(models: Mapping[str, nn.Module]) -> Facts:
    """How many hooks of each sort each module has."""
    return {
        f"{path(name, key)}.{sort}": len(table)
        for name, model in models.items()
        for key, module in model.named_modules()
        for sort, table in vars(module).items()
        if sort.endswith("_hooks") and isinstance(table, dict)
    }


def path(model: str, key: str) -> str:
    """`student.0`, or `student` for the model itself."""
    return f"{model}.{key}" if key else model


def fields(event: str, state: State) -> Facts:
    """The fields of the state that are plain values or tensors, and the numbers of the record and of the metrics."""
    names = {field.name for field in attrs.fields(type(state))} - {*LENT, *ASKED}
    found: Facts = {name: getattr(state, name) for name in sorted(names) if event in PASSING.get(name, (event,))}
    found |= {f"record[{name!r}]": value for name, value in state.record.items() if "per_second" not in name}
    if event in MEASURED:
        found |= {f"metrics[{name!r}]": value for name, value in state.metrics.items()}
    return {name: copied(value) for name, value in found.items() if isinstance(value, PLAIN)}


def copied(value: Any) -> Any:
    """A value that stays as it is when the other one is changed."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list | tuple) else value
