"""Parameter groups: what losses train besides the student joins its optimizer, some of it with options of its own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from hookbrew import words
from hookbrew.errors import ConfigError, Problem
from hookbrew.loop.rate import OWNER
from hookbrew.objective import Objective, Tasks

KEPT = frozenset({"params", "param_names", "initial_lr", OWNER})
"""The keys of the first group that no other takes from it."""


@attrs.frozen
class Own:
    """What one loss trains by itself, with the options that its table gives."""

    name: str
    path: str
    """`losses[1].optimizer`."""
    options: Mapping[str, Any]
    parameters: list[nn.Parameter]


def owned(objective: Objective | Tasks) -> list[Own]:
    """The losses with options of their own for the optimizer; known after `measure`.

    Raises ConfigError for one that trains nothing of its own.
    """
    theirs = {id(parameter) for parameter in objective.student.parameters()}
    found, problems = list[Own](), list[Problem]()
    for task, part in objective.parts.items():
        for source in part.sources:
            if source.table.optimizer is None:
                continue
            modules = [term.projection for term in part.terms if term.source is source] + [source.function]
            trained = {p: None for module in modules if isinstance(module, nn.Module) for p in module.parameters()}
            parameters = [p for p in trained if id(p) not in theirs]
            name, path = f"{task}/{source.name}" if task else source.name, f"{source.path}.optimizer"
            found.append(Own(name, path, source.table.optimizer, parameters))
            if not any(p.requires_grad for p in parameters):
                message = f"loss {name!r} trains nothing of its own: it has no projection and learns nothing; "
                problems.append(Problem(path, f"{message}leave this key out"))
    if problems:
        raise ConfigError(problems)
    return found


def adopt(
    optimizer: torch.optim.Optimizer, student: nn.Module, objective: Objective | Tasks, rate: object = None
) -> None:
    """Let the optimizer train projections and learnable losses too, in its first group or in groups of their own.

    A group of their own is one more than a scheduler of torch has counted, so only losses that ask for it get one.
    rate: what moves the learning rate. Raises ConfigError for an optimizer that cannot train the student, or cannot
    have such a group.
    """
    require_trainer(optimizer, student)
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    names = {id(p): f"extras.{name}" for name, p in objective.extras.named_parameters()}
    apart = [own for own in owned(objective) if not present(optimizer, own)]
    problems = [problem for own in apart for problem in refused(optimizer, own, known, rate)]
    if problems:
        raise ConfigError(problems)
    first = optimizer.param_groups[0]
    for own in apart:
        optimizer.add_param_group(group(first, own, names))
        known.update(map(id, own.parameters))
    for parameter in objective.extras.parameters():
        if id(parameter) not in known:
            first["params"].append(parameter)
            if "param_names" in first:
                first["param_names"].append(names[id(parameter)])


def require_trainer(optimizer: torch.optim.Optimizer, student: nn.Module) -> None:
    """Raise ConfigError for an optimizer that cannot train the student."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        name = type(optimizer).__name__
        raise ConfigError([Problem("optimizer", f"{name} computes the loss several times a step; take another")])
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if known.isdisjoint(map(id, student.parameters())):
        raise ConfigError([Problem("optimizer", "it holds no parameter of the student, which would not be trained")])


def present(optimizer: torch.optim.Optimizer, own: Own) -> bool:
    """Whether an optimizer has the group of a loss from an earlier training."""
    mine = {id(p) for p in own.parameters}
    return any({id(p) for p in group["params"]} == mine for group in optimizer.param_groups if OWNER in group)


def refused(optimizer: torch.optim.Optimizer, own: Own, known: set[int], rate: object) -> Iterator[Problem]:
    """Why a loss cannot have a group of its own, or not with these options."""
    if isinstance(rate, LRScheduler):
        message = (
            f"{type(rate).__name__} has counted the groups of the optimizer before this one came; take hb.schedule"
        )
        yield Problem(own.path, f"{message}(...) for the learning rate, or leave this key out")
    if not known.isdisjoint(map(id, own.parameters)):
        yield Problem(own.path, "the optimizer has these parameters already; leave them, or this key, out")
    unknown = [key for key in own.options if key not in optimizer.defaults]
    kind = type(optimizer).__name__
    for key in unknown:
        yield Problem(f"{own.path}.{key}", f"{kind} has no option {key!r}; {words.hint(key, optimizer.defaults)}")
    if not unknown and (refusal := impossible(optimizer, own)):
        yield Problem(own.path, f"{kind}: {refusal}")


def impossible(optimizer: torch.optim.Optimizer, own: Own) -> str | None:
    """Why an optimizer refuses these values, in its own words; None if it takes them.

    Asked by making another one, for the check of values is part of that. One that takes what its groups do not have
    cannot be made, nor asked.
    """
    taken = inspect.signature(type(optimizer)).parameters
    options = {key: value for key, value in {**optimizer.param_groups[0], **own.options}.items() if key in taken}
    first, *others = taken.values()
    if any(p.default is p.empty and p.name not in options for p in others if p.kind is p.POSITIONAL_OR_KEYWORD):
        return None
    try:
        type(optimizer)(own.parameters, **{key: value for key, value in options.items() if key != first.name})
    except (TypeError, ValueError, RuntimeError) as error:
        return " ".join(str(error).split())
    return None


def group(first: Mapping[str, Any], own: Own, names: Mapping[int, str]) -> dict[str, Any]:
    """The group of a loss: its own options, and else those of the first group."""
    made = {**{key: value for key, value in first.items() if key not in KEPT}, **own.options, OWNER: own.name}
    named = [(names[id(p)], p) for p in own.parameters] if "param_names" in first else own.parameters
    return {**made, "params": named}


def default(student: nn.Module) -> torch.optim.Optimizer:
    """AdamW with lr 5e-5; fused, so that on a GPU a step that is not finite is skipped without asking the device."""
    parameters = list(student.parameters())
    return torch.optim.AdamW(parameters, 5e-5, fused=parameters[0].device.type in ("cpu", "cuda"))
