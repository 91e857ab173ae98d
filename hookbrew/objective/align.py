"""Masks and labels, brought to the shape of the tensors that a loss compares.

B batch, L tokens, D features, C classes. A mask is (B, L), 1 where a position counts. A tensor that
begins with (B, L) and has a feature dimension counts positions; any other counts samples, (B,).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hookbrew import words
from hookbrew.errors import DataError, ObjectiveError
from hookbrew.objective.inputs import Names
from hookbrew.objective.source import Source
from hookbrew.objective.term import Level

IGNORED = -100
"""The label that marks a position or a sample without one, as everywhere in torch."""


def mask_key(source: Source, names: Names) -> str | None:
    """The key of the mask that a loss uses, or None if it was told to use none."""
    wanted = source.table.mask
    if wanted is False:
        return None
    return names.mask if wanted is True else wanted


def level_of(source: Source, tensor: Tensor, batch: Mapping[str, Any], names: Names) -> Level:
    """Whether a loss counts positions or samples of this tensor of the student.

    Raises ObjectiveError when a mask is there that does not fit, or that the loss does not take: padding
    would count as real input.
    """
    key = mask_key(source, names)
    if key is not None and key not in batch and (isinstance(source.table.mask, str)):
        raise ObjectiveError(f"mask: the batch has no key {key!r}; {words.hint(key, batch)}")
    if key is None or key not in batch or tensor.dim() < 3:
        return "position" if labelled(source, tensor, batch, names) else "sample"
    mask = batch[key]
    if tensor.shape[: mask.dim()] != mask.shape:
        raise ObjectiveError(
            f"the mask {key!r} is {tuple(mask.shape)} and does not fit the student's {tuple(tensor.shape)}; name "
            'the right key with mask = "...", or write mask = false if every position counts'
        )
    if "mask" not in source.roles:
        raise ObjectiveError(
            f"loss {source.table.type!r} takes no mask, and {key!r} marks padding in its tensors; give its "
            "function a parameter 'mask', or write mask = false if every position counts"
        )
    return "position"


def labelled(source: Source, tensor: Tensor, batch: Mapping[str, Any], names: Names) -> bool:
    """Whether there is a label for each position of the tensor."""
    labels = batch.get(source.table.labels or names.labels)
    return (
        "labels" in source.roles and isinstance(labels, Tensor) and labels.shape == tensor.shape[:-1] != (len(tensor),)
    )


def valid(source: Source, level: Level, batch: Mapping[str, Any], names: Names) -> tuple[Tensor | None, Tensor | None]:
    """The mask, bool (B, L) or (B,), and the labels for a loss; each None where there is none.

    A label of -100 makes its position invalid. Raises DataError when labels are needed and missing.
    """
    labels = labels_of(source, batch, names) if "labels" in source.roles else None
    key = mask_key(source, names)
    mask = batch[key].bool() if level == "position" and key is not None and key in batch else None
    if labels is not None and not labels.is_floating_point():
        there = labels != IGNORED
        mask = there if mask is None else mask & there
    return mask, labels


def labels_of(source: Source, batch: Mapping[str, Any], names: Names) -> Tensor:
    """The labels for a loss; raises DataError when the batch has none under that key."""
    key = source.table.labels or names.labels
    if key not in batch:
        raise DataError(f"{source} needs labels, and the batch has no key {key!r}; {words.hint(key, batch)}")
    labels: Tensor = batch[key]
    return labels


def count(mask: Tensor | None, samples: int, device: torch.device) -> Tensor:
    """How many positions or samples are valid, a float scalar on `device`; no host sync."""
    return torch.full((), float(samples), device=device) if mask is None else mask.sum().float()
