"""Masks and labels, brought to the shape of the tensors that a loss compares.

B batch, L tokens, D features, C classes, H heads, S keys. A mask is (B, L), 1 where a position counts.
Unless its class says what it counts, a loss on a tensor that begins with (B, L) and has a feature dimension, or
that comes from an attention, counts positions; on any other it counts samples, (B,).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from hookbrew import words
from hookbrew.errors import DataError, ObjectiveError
from hookbrew.objective.attended import places
from hookbrew.objective.inputs import Names
from hookbrew.objective.source import Counts, Source

IGNORED = -100
"""The label that marks a position or a sample without one, as everywhere in torch."""


@attrs.frozen
class Scope:
    """What a term counts, settled on the first batch: which mask it obeys, and whether labels mark positions."""

    counts: Counts
    """Positions, (B, L); pairs of positions of one sample, (B, L, L); or samples, (B,)."""
    mask: str | None = None
    """The key of the mask that it obeys; None where every position counts."""
    marked: bool = False
    """Whether there is one label for each position or sample, so that -100 takes it out."""


def mask_key(source: Source, names: Names) -> str | None:
    """The key of the mask that a loss uses, or None if it was told to use none."""
    wanted = source.table.mask
    if wanted is False:
        return None
    return names.mask if wanted is True else wanted


def scope_of(source: Source, tensor: Tensor, batch: Mapping[str, Any], names: Names) -> Scope:
    """What a loss counts in this tensor of the student, and which mask and labels say what of it is there.

    Raises ObjectiveError when a mask is there that does not fit, or that the loss does not take: padding
    would count as real input. Raises DataError when labels are needed and missing.
    """
    there = places(source.takes, tensor.shape)
    labels = labels_of(source, batch, names) if "labels" in source.roles else None
    marked = labels is not None and source.marks and not labels.is_floating_point() and labels.shape == there
    mask = masked(source, tensor, batch, names)
    inferred: Counts = "positions" if len(there) > 1 and (mask is not None or marked) else "samples"
    return Scope(source.counts or inferred, mask, marked)


def masked(source: Source, tensor: Tensor, batch: Mapping[str, Any], names: Names) -> str | None:
    """The key of the mask that the tensor obeys, (..., D) by a mask (...), (B, H, L, S) or (B, H, L, D) of an
    attention by one (B, L); None if there is none for it."""
    key, named = mask_key(source, names), isinstance(source.table.mask, str)
    if named and key not in batch:
        raise ObjectiveError(f"mask: the batch has no key {key!r}; {words.hint(str(key), batch)}")
    if key is None or key not in batch or (tensor.dim() < 3 and not named):
        return None  # a mask of positions says nothing about a tensor that has none, like pooled logits
    if places(source.takes, tensor.shape) != batch[key].shape:
        raise ObjectiveError(
            f"the mask {key!r} is {tuple(batch[key].shape)} and does not fit the student's {tuple(tensor.shape)}; name "
            'the right key with mask = "...", or write mask = false if every position counts'
        )
    if "mask" not in source.roles:
        raise ObjectiveError(
            f"loss {source.table.type!r} takes no mask, and {key!r} marks padding in its tensors; give its "
            "function a parameter 'mask', or write mask = false if every position counts"
        )
    return key


def valid(source: Source, scope: Scope, batch: Mapping[str, Any], names: Names) -> tuple[Tensor | None, Tensor | None]:
    """The mask, bool (B, L) or (B,), and the labels for a loss; each None where there is none.

    A label of -100 makes its position invalid. Raises DataError when the mask or the labels are missing.
    """
    labels = labels_of(source, batch, names) if "labels" in source.roles else None
    if scope.mask is not None and scope.mask not in batch:
        raise DataError(f"loss {source.name!r} obeys {scope.mask!r}, which the first batch had and this one lacks")
    mask = batch[scope.mask].bool() if scope.mask is not None else None
    if labels is not None and scope.marked:
        there = labels != IGNORED
        mask = there if mask is None else mask & there
    return mask, labels


def labels_of(source: Source, batch: Mapping[str, Any], names: Names) -> Tensor:
    """The labels for a loss; raises DataError when the batch has none under that key."""
    key = source.table.labels or names.labels
    if key not in batch:
        raise DataError(
            f"loss {source.name!r} needs labels, and the batch has no key {key!r}; {words.hint(key, batch)}"
        )
    labels = batch[key]
    if not isinstance(labels, Tensor):
        raise DataError(
            f"loss {source.name!r} needs labels, and {key!r} is a {type(labels).__name__}; expected a tensor"
        )
    return labels


def count(mask: Tensor | None, counts: Counts, samples: int, device: torch.device) -> Tensor:
    """How many positions, pairs or samples are valid, a float scalar on `device`; no host sync.

    Without a mask it is the samples: each has as much of the rest as any other.
    A pair is two valid positions of one sample; a sample is valid with any position.
    """
    if mask is None:
        return torch.full((), float(samples), device=device)
    positions = mask.reshape(len(mask), -1).sum(dim=1)
    of_each = {"positions": positions, "pairs": positions.square(), "samples": positions > 0}
    return of_each[counts].sum().float()
