"""Whether student and teacher read the same tokens: position by position, those of two texts are unrelated.

B batch, L tokens. A batch has tokens under a key that holds integers (B, L).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor

from hookbrew.errors import ConfigError, ObjectiveError, Problem
from hookbrew.objective.align import masked
from hookbrew.objective.attended import ATTENDED, places
from hookbrew.objective.inputs import Names, called, parted
from hookbrew.objective.source import Source

POOLED = "compare pooled tensors, one row for each sample"


def require_aligned(
    source: Source, student: Tensor, teachers: Mapping[str, Tensor], batch: Mapping[str, Any], names: Names
) -> None:
    """Raise ObjectiveError where positions would be compared that are of other tokens, unless `aligned` was said.

    student, teachers: what the loss compares. That the tensors have one shape says nothing: two texts may have one
    length by chance.
    """
    for name, teacher in teachers.items():
        key = apart(batch, name, names)
        if key is None or not positional(source, student, teacher, batch, names):
            continue
        ours, theirs = (tuple(parted(batch, *side)[key].shape) for side in (("student",), ("teacher", name)))
        who = f"loss {source.table.type!r} pairs the positions of student and {called(name)}"
        if places(source.takes, student.shape) != places(source.takes, teacher.shape) and ours != theirs:
            raise ObjectiveError(
                f"{who}, and {key!r} are two texts, {ours} and {theirs}, of different lengths; {POOLED}"
            )
        if not names.aligned:
            raise ObjectiveError(
                f"{who}, and {key!r} are other tokens on either side; {POOLED}; or write "
                "aligned = true, if position i is the same token for both"
            )


def positional(source: Source, student: Tensor, teacher: Tensor, batch: Mapping[str, Any], names: Names) -> bool:
    """Whether a loss compares what stands at position i of the one with what stands there of the other.

    One on relations between samples does so by a mask alone, which it obeys on both sides.
    """
    if source.takes == "logits" and names.classes == "tokens":
        return True
    if student.dim() < 3 or teacher.dim() < 3:
        return False
    within = source.takes not in ("logits", "hidden", *ATTENDED) and source.counts == "samples"
    return not within or bool(masked(source, student, batch, names))


def apart(batch: Mapping[str, Any], teacher: str, names: Names) -> str | None:
    """The key of the tokens that differ between the student and a teacher, by its name, where both masks are 1."""
    student, other = parted(batch, "student"), parted(batch, "teacher", teacher)
    masks = [side[names.mask] for side in (student, other) if isinstance(side.get(names.mask), Tensor)]
    for key, ours, theirs in doubled(student, other, names):
        if ours.shape != theirs.shape:
            return key
        unlike = ours != theirs
        for mask in masks:
            unlike &= mask.bool() if mask.shape == unlike.shape else True
        if bool(unlike.any()):
            return key
    return None


def doubled(
    student: Mapping[str, Any], teacher: Mapping[str, Any], names: Names
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The tokens that both sides have, each its own, with their keys."""
    for key, ours in student.items():
        theirs = teacher.get(key)
        said = key in (names.mask, names.index, *names.kept)
        if not said and ours is not theirs and worded(ours) and worded(theirs):
            yield key, ours, theirs


def worded(value: Any) -> TypeGuard[Tensor]:
    """Whether these may be tokens: integers (B, L)."""
    if not isinstance(value, Tensor) or value.dim() != 2:
        return False
    return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)


def require_doubled(batch: Mapping[str, Any], names: Names, at: str) -> None:
    """Raise ConfigError where `aligned` is said of a batch whose sides have no tokens of their own."""
    if not names.aligned:
        return
    sides = {("teacher", *key.split(".")[1:-1]) for key in batch if key.startswith("teacher.")} | {("teacher",)}
    if not any(True for side in sides for _ in doubled(parted(batch, "student"), parted(batch, *side), names)):
        message = "student and teacher have no tokens of their own in the batch, so nothing would read it; leave it out"
        raise ConfigError([Problem(f"{at}data.aligned", message)])
