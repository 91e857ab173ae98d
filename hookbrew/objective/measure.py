"""One batch through both models, before training: sizes are measured, and what cannot work is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hookbrew.errors import ConfigError, ObjectiveError, Problem
from hookbrew.objective.align import logits_of, scope_of
from hookbrew.objective.attended import ATTENDED, require_attended
from hookbrew.objective.inputs import Names, called
from hookbrew.objective.leaves import leaves
from hookbrew.objective.projection import projected
from hookbrew.objective.source import Source, collected
from hookbrew.objective.term import Term, listed, require_scalar
from hookbrew.objective.tokens import require_aligned

SAME = ("logits", "hidden")
"""Kinds of tensors that a loss compares element by element: their shapes must be equal."""


def built(
    sources: Sequence[Source], read: Callable[[str, str], Any], batch: Mapping[str, Any], names: Names
) -> tuple[Term, ...]:
    """The terms of all sources; raises ConfigError with all that is wrong.

    read: gives what a source reads of a model, by the model's name and the source's path.
    """
    terms, problems = list[Term](), list[Problem]()
    for source in sources:
        with collected(problems, source.path):
            teachers = {name: read(name, source.path) for name in source.teachers}
            terms += termed(source, read("student", source.path), teachers, batch, names)
    if problems:
        raise ConfigError(problems)
    return tuple(terms)


def termed(
    source: Source, student: Any, teachers: Mapping[str, Any], batch: Mapping[str, Any], names: Names
) -> Iterator[Term]:
    """The terms of one source, given what its selectors captured: one for each pair of tensors.

    teachers: by name, those that it compares with. Raises ObjectiveError when the sides cannot be paired, or a pair
    has shapes that do not fit.
    """
    if source.takes == "flow":
        yield flowing(source, student, teachers, batch, names)
        return
    lists = {side: value for side, value in {"student": student, **teachers}.items() if isinstance(value, list)}
    if not lists:
        yield paired(source, None, (student, teachers), batch, names)
        return
    if len(lists) <= len(teachers):
        one = next(iter(lists.values()))
        raise ObjectiveError(
            f"one side is a list of {len(one)} tensors and the other a single tensor; a selector that "
            "has * ? { , or : in its path gives a list: write both in the same way"
        )
    for name, tensors in teachers.items():
        if len(student) != len(tensors):
            raise ObjectiveError(
                f"{len(student)} student taps and {len(tensors)} {called(name)} taps; they are matched one to one"
            )
    for pair, tensor in enumerate(student):
        theirs = {name: tensors[pair] for name, tensors in teachers.items()}
        yield paired(source, pair, (tensor, theirs), batch, names)


def paired(
    source: Source,
    pair: int | None,
    sides: tuple[Tensor, Mapping[str, Tensor]],
    batch: Mapping[str, Any],
    names: Names,
) -> Term:
    """One term, with its projection built to the measured sizes; sides: the student's tensor, the teachers' by name."""
    student, teachers = sides
    require_aligned(source, student, teachers, batch, names)
    cuts = {name: cut(source, tensor, names) for name, tensor in teachers.items()}
    projection = projected(source, cut(source, student, names), next(iter(cuts.values()), None))
    if isinstance(source.function, nn.Module):
        source.function.to(student.device)
    if source.takes in ATTENDED:
        require_attended(source.table.type, source.takes, student, next(iter(teachers.values()), None))
    for name, theirs in cuts.items() if source.takes in SAME else ():
        require_same(source, cut(source, student, names), name, theirs, projected=projection is not None)
    return Term(
        name=source.name if pair is None else f"{source.name}/{pair}",
        source=source,
        pair=pair,
        scope=scope_of(source, pair, student, batch, names),
        projection=projection,
    )


def cut(source: Source, tensor: Tensor, names: Names) -> Tensor:
    """Logits without the padding of their vocabulary; any other tensor as it is."""
    counted = source.takes == "logits" and isinstance(names.classes, int)
    return logits_of(tensor, names, {}, shifted=False) if counted else tensor


def flowing(source: Source, student: Any, teachers: Mapping[str, Any], batch: Mapping[str, Any], names: Names) -> Term:
    """The one term of a loss that compares two layers of each side, and projects both of the student's alike."""
    for side, tensors in {"student": student, **teachers}.items():
        if not isinstance(tensors, list) or len(tensors) != 2:
            many = f"a list of {len(tensors)}" if isinstance(tensors, list) else "one tensor"
            raise ObjectiveError(
                f"loss {source.table.type!r} compares two layers of each side, and the {called(side)} names {many}; "
                'write two, as in ["hidden[0]", "hidden[-1]"]'
            )
    require_aligned(source, student[0], {name: tensors[0] for name, tensors in teachers.items()}, batch, names)
    theirs = next(iter(teachers.values()), None)
    if isinstance(source.function, nn.Module):
        source.function.to(student[0].device)
    if source.table.projection is not None and student[0].shape[-1] != student[1].shape[-1]:
        widths = " and ".join(str(tensor.shape[-1]) for tensor in student)
        raise ObjectiveError(f"projection: the student's two layers have widths {widths}; one projection is for both")
    return Term(
        name=source.name,
        source=source,
        pair=None,
        scope=scope_of(source, None, student[0], batch, names),
        projection=projected(source, student[0], None if theirs is None else theirs[0]),
    )


def require_same(source: Source, student: Tensor, name: str, teacher: Tensor, *, projected: bool) -> None:
    """Raise ObjectiveError unless the shapes are equal, the last dimension left to a projection."""
    if student.shape == teacher.shape or (projected and student.shape[:-1] == teacher.shape[:-1]):
        return
    said = f"student {tuple(student.shape)} and {called(name)} {tuple(teacher.shape)} differ"
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ObjectiveError(
            f"{said} before the last dimension; loss {source.table.type!r} compares position by position"
        )
    if source.takes == "logits":
        fewer = min(student.shape[-1], teacher.shape[-1])
        padding = f"; if the rest is padding of a vocabulary, write data.classes = {fewer}" if fewer > 1000 else ""
        raise ObjectiveError(f"{said}: they must have the same classes{padding}")
    raise ObjectiveError(f'{said} in width: add projection = "linear"')


def require_reach(terms: Sequence[Term], evaluated: Callable[[Term], tuple[Any, Tensor]]) -> set[int]:
    """The ids of all parameters that the terms reach.

    evaluated: gives the student's tensor of a term, and the term's mean on the first batch. Raises ConfigError for each
    term that is no finite scalar, or has no path to a trained parameter.
    """
    problems, found = list[Problem](), set[int]()
    for term in terms:
        with collected(problems, term.source.path):
            student, value = evaluated(term)
            require_trained(term, student, value)
            found |= leaves(value)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))  # several terms of one table may share theirs
    return found


def require_trained(term: Term, student: Tensor | list[Tensor], value: Any) -> None:
    """Raise ObjectiveError unless the value of a term on the first batch can be trained on.

    That a projection has a gradient is not enough: it would imitate alone.
    """
    require_scalar(term.name, value)
    attached = [tensor for tensor in listed(student) if tensor.requires_grad and value.requires_grad]
    reached = torch.autograd.grad(value, attached, retain_graph=True, allow_unused=True) if attached else ()
    if not any(gradient is not None for gradient in reached):
        raise ObjectiveError(
            f"loss {term.name!r} reaches no trained parameter: its student tensor has no gradient "
            "(is that part of the student frozen, or detached?)"
        )
    if not torch.isfinite(value):
        raise ObjectiveError(f"loss {term.name!r} is {value.item()} on the first batch")
