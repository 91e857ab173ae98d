"""How similar layers are: linear CKA of every student layer with every teacher layer.

B batch, L tokens, D features, N rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hookbrew.errors import ObjectiveError

__all__ = ["alike", "pooled", "rows"]

STILL = 1e-6
"""A layer that varies less than this share of its size does not vary: it is like nothing."""


def alike(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """|T' S|^2 / (|S' S| |T' T|) with Frobenius norms for each pair of layers, (student layers, teacher layers).

    S, T: rows (N, D) of one layer less their mean; each has its own D. A layer that does not vary gives nan.
    Kornblith, Norouzi, Lee, Hinton 2019, section 3.
    """
    ours, theirs = ([centred(rows) for rows in side] for side in (student, teacher))
    if len(ours[0]) <= min(rows.shape[1] for rows in (*ours, *theirs)):  # few rows: compare them by their products
        one, other = (torch.stack([(rows @ rows.mT).flatten() for rows in side]) for side in (ours, theirs))
        cross = one @ other.mT
        own, their = one.norm(dim=1), other.norm(dim=1)
    else:
        cross = torch.stack([torch.stack([(b.mT @ a).square().sum() for b in theirs]) for a in ours])
        own, their = (torch.stack([(rows.mT @ rows).norm() for rows in side]) for side in (ours, theirs))
    found: Tensor = cross / (own[:, None] * their)
    return found


def centred(rows: Tensor) -> Tensor:
    """Rows (N, D) less their mean, of length 1 together; nan if they do not vary."""
    rows = rows.detach().float()
    varying = rows - rows.mean(dim=0)
    size = varying.norm()
    unit: Tensor = varying / size.where(size > STILL * rows.norm(), torch.nan)
    return unit


def rows(
    student: Sequence[Tensor], teacher: Sequence[Tensor], masks: tuple[Tensor | None, Tensor | None]
) -> tuple[list[Tensor], list[Tensor], str]:
    """The layers of both sides as rows (N, D), and what the rows are in words: `412 tokens`, `32 samples`.

    Layers (B, L, D) with the same tokens on both sides are compared token by token, without those that a mask (B, L)
    leaves out. All others sample by sample: the mean over the tokens of (B, L, D), and all features of (B, ...).
    Raises ObjectiveError for a mask that does not fit, and where samples differ.
    """
    sides = list(zip((student, teacher), masks, strict=True))
    for layers, mask in sides:
        require_mask(layers, mask)
    places = {layer.shape[:2] if layer.dim() == 3 else None for layer in (*student, *teacher)}
    if len(places) == 1 and None not in places:
        there = torch.ones(student[0].shape[:2], dtype=torch.bool, device=student[0].device)
        for mask in masks:
            there = there if mask is None else there & mask.bool()
        ours, theirs = ([layer[there] for layer in layers] for layers in (student, teacher))
        return ours, theirs, f"{len(ours[0]):,} tokens"
    ours, theirs = ([pooled(layer, mask) for layer in layers] for layers, mask in sides)
    if len({len(layer) for layer in (*ours, *theirs)}) > 1:
        shapes = f"student {tuple(student[0].shape)}, teacher {tuple(teacher[0].shape)}"
        raise ObjectiveError(f"layers are of other samples, {shapes}; name layers whose first dimension is the batch")
    return ours, theirs, f"{len(ours[0]):,} samples"


def require_mask(layers: Sequence[Tensor], mask: Tensor | None) -> None:
    """Raise ObjectiveError unless the mask is of the tokens of all layers that have tokens."""
    for layer in layers:
        if mask is not None and layer.dim() == 3 and layer.shape[:2] != mask.shape:
            raise ObjectiveError(
                f"the mask is {tuple(mask.shape)} and does not fit a layer {tuple(layer.shape)}; name the right key "
                'of the batch with mask = "...", or write mask = "" if every token counts'
            )


def pooled(layer: Tensor, mask: Tensor | None) -> Tensor:
    """One row for each sample, (B, D)."""
    if layer.dim() != 3:
        return layer.reshape(len(layer), -1)
    if mask is None:
        return layer.float().mean(dim=1)
    there = mask.bool()[..., None]
    return layer.float().masked_fill(~there, 0.0).sum(dim=1) / there.sum(dim=1).clamp(min=1)
