"""One batch through both models, before training: sizes are measured, and what cannot work is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hookbrew.errors import ConfigError, ObjectiveError, Problem
from hookbrew.objective.align import scope_of
from hookbrew.objective.attended import ATTENDED, require_attended
from hookbrew.objective.inputs import Names
from hookbrew.objective.source import Source, collected
from hookbrew.objective.term import Term

SAME = ("logits", "hidden")
"""Kinds of tensors that a loss compares element by element: their shapes must be equal."""


def termed(source: Source, student: Any, teacher: Any, batch: Mapping[str, Any], names: Names) -> Iterator[Term]:
    """The terms of one source, given what its selectors captured: one for each pair of tensors.

    Raises ObjectiveError when the two sides cannot be paired, or a pair has shapes that do not fit.
    """
    lists = [side for side in (student, teacher) if isinstance(side, list)]
    if not lists:
        yield paired(source, None, (student, teacher), batch, names)
        return
    if teacher is not None and not (isinstance(student, list) and isinstance(teacher, list)):
        raise ObjectiveError(
            f"one side is a list of {len(lists[0])} tensors and the other a single tensor; a selector that "
            "has * ? { , or : in its path gives a list: write both in the same way"
        )
    if teacher is not None and len(student) != len(teacher):
        raise ObjectiveError(
            f"{len(student)} student taps and {len(teacher)} teacher taps; they are matched one to one"
        )
    for pair, tensor in enumerate(student):
        yield paired(source, pair, (tensor, None if teacher is None else teacher[pair]), batch, names)


def paired(
    source: Source, pair: int | None, tensors: tuple[Tensor, Tensor | None], batch: Mapping[str, Any], names: Names
) -> Term:
    """One term, with its projection built to the measured sizes."""
    student, teacher = tensors
    projection = projected(source, student, teacher)
    if isinstance(source.function, nn.Module):
        source.function.to(student.device)
    if source.takes in ATTENDED:
        require_attended(source.table.type, source.takes, student, teacher)
    if teacher is not None and source.takes in SAME:
        require_same(source, student, teacher, projected=projection is not None)
    return Term(
        name=source.name if pair is None else f"{source.name}/{pair}",
        source=source,
        pair=pair,
        scope=scope_of(source, student, batch, names),
        projection=projection,
    )


def projected(source: Source, student: Tensor, teacher: Tensor | None) -> nn.Module | None:
    """The projection from the student's to the teacher's width, as precise as the student and where it is."""
    if source.table.projection is None or teacher is None:
        return None
    built: nn.Module = source.table.projection.options.build(student.shape[-1], teacher.shape[-1])
    return built.to(student.device, student.dtype)


def require_same(source: Source, student: Tensor, teacher: Tensor, *, projected: bool) -> None:
    """Raise ObjectiveError unless the shapes are equal, the last dimension left to a projection."""
    if student.shape == teacher.shape or (projected and student.shape[:-1] == teacher.shape[:-1]):
        return
    said = f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ"
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ObjectiveError(
            f"{said} before the last dimension; loss {source.table.type!r} compares position by position"
        )
    if source.takes == "logits":
        raise ObjectiveError(f"{said}: they must have the same classes")
    raise ObjectiveError(f'{said} in width: add projection = "linear"')


def require_reach(terms: Sequence[Term], evaluated: Callable[[Term], tuple[Tensor, Tensor]]) -> None:
    """Raise ConfigError for each term that is no finite scalar, or has no path to a trained parameter.

    evaluated: gives the student's tensor of a term, and the term's mean on the first batch.
    """
    problems = list[Problem]()
    for term in terms:
        with collected(problems, term.source.path):
            require_trained(term, *evaluated(term))
    if problems:
        raise ConfigError(problems)


def require_trained(term: Term, student: Tensor, value: Any) -> None:
    """Raise ObjectiveError unless the value of a term on the first batch can be trained on.

    That a projection has a gradient is not enough: it would imitate alone.
    """
    if not isinstance(value, Tensor) or value.dim():
        shape = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ObjectiveError(
            f"loss {term.name!r} returned {shape}; expected a scalar tensor, the mean over valid positions"
        )
    attached = student.requires_grad and value.requires_grad
    if not attached or torch.autograd.grad(value, student, retain_graph=True, allow_unused=True)[0] is None:
        raise ObjectiveError(
            f"loss {term.name!r} reaches no trained parameter: its student tensor has no gradient "
            "(is that part of the student frozen, or detached?)"
        )
    if not torch.isfinite(value):
        raise ObjectiveError(f"loss {term.name!r} is {value.item()} on the first batch")
