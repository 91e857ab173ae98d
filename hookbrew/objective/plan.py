"""Which losses on logits are computed in chunks, from hidden states and heads: as asked, or by size and memory.

B batch, L tokens, V classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

import attrs
import torch
from torch import Tensor, nn

from hookbrew.errors import ConfigError, HookbrewError, ObjectiveError, Problem
from hookbrew.objective.chunk import Chunked
from hookbrew.objective.heads import Head, Look, look
from hookbrew.objective.inputs import Names, called
from hookbrew.objective.source import Source, collected
from hookbrew.taps import synced
from hookbrew.taps.read import compiled

Wanted = bool | Literal["auto"]
COPIES: Final = 7
"""So many tensors as large as the logits are alive at most in a step of a dense divergence, of both models."""
LARGE: Final = 256 * 2**20
"""Bytes from which a host's allocator gives back what it is asked for in each step, and pages fault in again."""
SHARE: Final = 0.25
"""The part of a device's free memory from which on copies of logits are avoided: there, chunks cost time."""


@attrs.frozen
class Plan:
    """What is computed in chunks."""

    heads: Mapping[tuple[str, str], Head] = attrs.field(factory=dict)
    """By model and source's path; empty where the whole logits are taken."""
    note: str | None = None
    """Why large logits are taken whole after all."""

    @property
    def selectors(self) -> dict[tuple[str, str], str]:
        """What is read in place of logits, by model and source's path."""
        return {place: found.selector for place, found in self.heads.items()}


def planned(
    wanted: Wanted,
    sources: Sequence[Source],
    models: Mapping[str, nn.Module],
    inputs: Callable[[str], Mapping[str, Any]],
    names: Names,
) -> Plan:
    """The plan of an objective. All losses on logits are computed in chunks, or none: one whole tensor is as large.

    wanted: false for the whole logits; true for chunks; "auto" for chunks where the whole logits are large.
    inputs: what a model gets of the first batch, by its name. Raises ConfigError where chunks are wanted and some loss
    cannot be computed so.
    """
    taking = [source for source in sources if source.takes == "logits"]
    student = models["student"]
    if wanted is False or not taking or (wanted == "auto" and not maybe(student, inputs("student"))):
        return Plan()
    problems = [Problem(source.path, why) for source in taking if (why := hindered(source, names) or stopless(student))]
    looks, heads = dict[tuple[str, Any], Look](), dict[tuple[str, str], Head]()
    for source in taking:
        for model, selector in source.selectors.items() if isinstance(source.selectors["student"], str) else ():
            with collected(problems, source.path):
                if (model, selector) not in looks:
                    looks[model, selector] = tried(model, models[model], str(selector), inputs(model))
                if wanted == "auto" and not worth(looks[model, selector], device_of(student)):
                    return Plan()
                heads[model, source.path] = required(model, str(selector), looks[model, selector])
    if problems and wanted is True:
        raise ConfigError([attrs.evolve(p, message=f"train.chunked: {p.message}") for p in problems])
    return Plan(note=f"{problems[0].path}: {problems[0].message}") if problems else Plan(heads)


def hindered(source: Source, names: Names) -> str | None:
    """Why a loss needs the whole logits; None if it does not."""
    who = f"loss {source.table.type!r}"
    if len(source.teachers) > 1:
        return f"{who} compares with several teachers at once, merged from whole logits"
    if not all(isinstance(selector, str) for selector in source.selectors.values()):
        return f"{who} compares lists of logits"
    if names.classes == "tokens":
        return 'with classes = "tokens" logits are of positions, not of a vocabulary'
    if source.table.projection is not None or isinstance(source.function, nn.Module):
        return f"{who} has parameters of its own, which take the whole logits"
    if chunked(source.table.options) is None:
        return f"{who} has no chunked form, or none with these options"
    return None


def chunked(options: Any) -> Chunked | None:
    """What options of a loss tell of its chunked form, if they tell anything."""
    tell = getattr(options, "chunked", None)
    found: Chunked | None = tell() if callable(tell) else None
    return found


def stopless(student: nn.Module) -> str | None:
    """Why forwards of the student cannot end before its head; None if they can."""
    if synced(student):
        return "a wrapper averages the student's gradients, and waits for its output"
    return "the student is compiled" if compiled(student) else None


def tried(name: str, model: nn.Module, selector: str, inputs: Mapping[str, Any]) -> Look:
    """`look`; raises ObjectiveError for a model that does not run on one sample, though it may on a batch."""
    try:
        return look(model, selector, inputs)
    except HookbrewError:
        raise
    except Exception as error:  # whatever a model raises; the whole batch that follows shows what is wrong with it
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ObjectiveError(f"the {called(name)} does not run on one sample of a batch: {told}") from error


def required(model: str, selector: str, found: Look) -> Head:
    """The head of logits; raises ObjectiveError where they are the output of none."""
    if found.head is None:
        raise ObjectiveError(
            f"the {called(model)}'s {selector!r} is not the output of one plain Linear: a softcap, a scale, an "
            "adapter, a change of type or a hook lies between"
        )
    return found.head


def device_of(model: nn.Module) -> torch.device:
    """Where a model is."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def maybe(student: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether logits may be large at all, for all that sizes of inputs and layers say: spares most runs a forward."""
    rows = max((value.numel() for value in inputs.values() if isinstance(value, Tensor)), default=0)
    classes = max((module.out_features for module in student.modules() if isinstance(module, nn.Linear)), default=0)
    return worth(Look(rows, classes, None), device_of(student))


def worth(found: Look, device: torch.device) -> bool:
    """Whether the copies of logits that a dense loss makes are worth avoiding on a device."""
    size = found.positions * found.classes * torch.float32.itemsize * COPIES
    if device.type != "cuda":
        return size > LARGE
    spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return size > SHARE * (torch.cuda.mem_get_info(device)[0] + spare)
