"""The sizes of what a training has from its first step to its last, in bytes; and gradients that are dropped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs
from torch import Tensor, nn

from hookbrew.estimate.live import Bytes
from hookbrew.loop import Loop
from hookbrew.ranks import layers


@attrs.frozen
class Weight:
    """A parameter that is trained, or a part of the student that is not; in bytes."""

    size: int
    gradient: int
    moments: int
    """What the optimizer keeps for it."""
    unit: int | None
    """The layer that FSDP2 gathers it with, -1 for what is in none; None for what is never shared out."""


def parameters(loop: Loop) -> list[nn.Parameter]:
    """Those of the student, then what is trained beside it."""
    return [*dict.fromkeys((*loop.state.student.parameters(), *loop.objective.extras.parameters()))]


def weighed(loop: Loop) -> list[Weight]:
    """All parameters, when the optimizer has made its first step."""
    student = loop.state.student
    units = {id(p): place for place, layer in enumerate(layers(student)) for p in layer.parameters()}
    own = {id(p): units.get(id(p), -1) for p in student.parameters()}
    found = []
    for parameter in parameters(loop):
        kept = loop.optimizer.state.get(parameter, {})
        moments = sum(nbytes(value) for value in kept.values() if isinstance(value, Tensor))
        gradient = nbytes(parameter) if parameter.requires_grad else 0
        found.append(Weight(nbytes(parameter), gradient, moments, own.get(id(parameter))))
    return found


def taught(teacher: nn.Module | None, student: nn.Module) -> dict[str, int]:
    """The size of all teachers, without what is the student's too, and what of one would be gathered at one time."""
    if teacher is None:
        return {"teacher": 0, "gathered": 0}
    theirs = {id(tensor) for tensor in (*student.parameters(), *student.buffers())}
    tensors = [t for t in (*teacher.parameters(), *teacher.buffers()) if id(t) not in theirs]
    gathered = 0
    for module in teacher.children() if type(teacher) is nn.ModuleDict else [teacher]:
        inner = [sum(map(nbytes, layer.parameters())) for layer in layers(module)]
        gathered = max(gathered, sum(map(nbytes, module.parameters())) - sum(inner) + max(inner, default=0))
    return {"teacher": sum(map(nbytes, tensors)), "gathered": gathered}


@contextmanager
def dropping(loop: Loop, moments: list[tuple[int, int]], counted: Bytes | None = None) -> Iterator[None]:
    """Inside, each gradient is noted and dropped as soon as it is there."""
    numbers = {id(parameter): number for number, parameter in enumerate(parameters(loop))}

    def drop(parameter: Tensor) -> None:
        if counted is not None:
            moments.append((numbers[id(parameter)], counted.since(nbytes(parameter))))
        parameter.grad = None

    with ExitStack() as stack:
        for parameter in parameters(loop):
            if parameter.requires_grad:
                hook: Any = parameter.register_post_accumulate_grad_hook(drop)  # type: ignore[no-untyped-call]
                stack.callback(hook.remove)
        yield


def nbytes(tensor: Tensor) -> int:
    """Bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()
