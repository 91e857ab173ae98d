"""The estimates of all stages of a configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs
import torch
from torch import nn

from hookbrew.config import read
from hookbrew.estimate.estimate import Estimate, Hardware, estimated
from hookbrew.estimate.measure import measured
from hookbrew.estimate.operations import rate
from hookbrew.estimate.sizes import nbytes
from hookbrew.loop import chosen
from hookbrew.plan import placed, planned
from hookbrew.plugin import Catalogue
from hookbrew.prepare import Prepared
from hookbrew.run import built


def estimates(
    path: str | Path,
    sets: Sequence[str] = (),
    *,
    catalogue: Catalogue,
    most: int,
    hardware: Hardware,
    say: Callable[[str], object],
) -> dict[str, Estimate]:
    """For each stage by its name, "" for the only one; raises what `hookbrew check` raises. Nothing is written.

    hardware: its memory is that of the GPU here if it says none. say is told what is being measured.
    """
    plan = planned(read(path, sets), catalogue, quiet=True)
    found = {}
    with built(plan, catalogue) as made:
        for stage, prepared in zip(plan, made, strict=True):
            say(f"plan: steps are made{f' of stage {stage.name}' if stage.name else ''}")
            with placed(stage.document):
                one = measured(prepared)
            device = chosen(stage.experiment.train.device)
            one = attrs.evolve(one, teacher=one.teacher + beside(prepared, made))
            one = attrs.evolve(one, facts={**one.facts, "rate": rate(device, precision(prepared, device))})
            here = hardware if hardware.memory is not None else attrs.evolve(hardware, memory=memory(device))
            found[stage.name] = estimated(one, here, most, refused(prepared.distillation.student))
    return found


def beside(prepared: Prepared, made: Sequence[Prepared]) -> int:
    """Bytes of the teachers of other stages: all are there from the beginning."""
    here = {id(tensor) for tensor in tensors(prepared)}
    others = {id(tensor): tensor for other in made for tensor in tensors(other) if id(tensor) not in here}
    return sum(map(nbytes, others.values()))


def tensors(prepared: Prepared) -> Iterator[torch.Tensor]:
    """The weights and buffers of a stage's teachers and student."""
    for module in (prepared.distillation.objective.teacher, prepared.distillation.student):
        if module is not None:
            yield from (*module.parameters(), *module.buffers())


def precision(prepared: Prepared, device: torch.device) -> torch.dtype:
    """In which most products are computed."""
    said = prepared.experiment.train.precision
    if said == "auto":
        said = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(said, torch.float32)


def memory(device: torch.device) -> float | None:
    """Bytes of a GPU; None of what is none."""
    return float(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else None


def refused(student: nn.Module) -> str:
    """Why FSDP2 could not share the student out; empty if it can."""
    for name, parameter in student.named_parameters():
        if not parameter.dim():
            return f"{name} is a single number, which FSDP2 cannot share out"
    return ""
