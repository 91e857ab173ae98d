"""Losses on how the features flow from one layer to a later one. B batch, L tokens, D features.

Each side is a list of two tensors, (B, L, D) or maps (B, C, H, W) whose places are H W tokens of C features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from hookbrew.errors import ObjectiveError
from hookbrew.objective import valid_mean
from hookbrew.plugin import options
from hookbrew_plugins.losses.heads import crossed
from hookbrew_plugins.losses.shapes import blanked, require_mask, widened

AXES = ("batch sizes", "numbers of tokens")


@options
class FSP:
    """Mean squared difference of the Gram matrices between the features of two layers (Yim et al. 2017, eq. 1-2).

    Flow of the solution procedure, TextBrewer's `fsp` or `gram`: features with features, summed over tokens. Both
    models have the same widths there, or a projection that both of the student's layers go through.
    """

    takes: ClassVar[str] = "flow"
    counts: ClassVar[str] = "samples"

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return fsp


@options
class NST:
    """Mean squared difference of the Gram matrices between the tokens of two layers (Huang and Wang 2017, eq. 9).

    Neuron selectivity transfer as TextBrewer computes it, its `nst` or `mmd`: tokens with tokens, over features.
    Widths of the two models may differ; the two layers of one model have the same.
    """

    takes: ClassVar[str] = "flow"
    counts: ClassVar[str] = "pairs"

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return nst


def fsp(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    """mean_de (G_s - G_t)^2 with G_de = sum_i m_i x_id y_ie / n, mean over samples, a scalar; x, y the two layers.

    student, teacher: [(B, L, D), (B, L, E)], the same on both sides; the teacher receives no gradient.
    mask: bool (B, L); n of a sample's tokens are valid, and a sample without any does not count.

    Raises ObjectiveError when there are not two layers on each side, or shapes do not fit.
    """
    ours, theirs = layers(student, teacher, mask)
    for first, second in zip(ours, theirs, strict=True):
        if first.shape != second.shape:
            raise ObjectiveError(
                f"features differ: {first.shape[-1]} and {second.shape[-1]}; fsp relates features to features: give "
                "the loss a projection, or take nst, which relates tokens to tokens"
            )
    there = torch.ones(ours[0].shape[:2], dtype=torch.bool, device=ours[0].device) if mask is None else mask
    tokens = there.sum(dim=1).clamp(min=1)[:, None, None]
    apart = ((ours[0].mT @ ours[1]) - (theirs[0].mT @ theirs[1])) / tokens
    return valid_mean(apart.square().mean(dim=(1, 2)), there.any(dim=1))


def nst(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    """sum_bij m_bi m_bj (K_s - K_t)^2 / sum_b n_b^2 with K_ij = sum_d x_id y_jd / D, a scalar; x, y the two layers.

    student, teacher: [(B, L, D), (B, L, D)], each side with its own D; the teacher receives no gradient.
    mask: bool (B, L); n_b tokens of sample b are valid. TextBrewer's of git; its release divides by L with a mask.

    Raises ObjectiveError when there are not two layers on each side, or shapes do not fit.
    """
    ours, theirs = (gram(*side) for side in layers(student, teacher, mask))
    return valid_mean((ours - theirs).square(), None if mask is None else crossed(mask))


def gram(first: Tensor, second: Tensor) -> Tensor:
    """The mean over features of products of tokens: two (B, L, D) to (B, L, L); ObjectiveError for other widths."""
    if first.shape[-1] != second.shape[-1]:
        raise ObjectiveError(
            f"the two layers of one model have {first.shape[-1]} and {second.shape[-1]} features; nst multiplies "
            "them, and needs two layers of one width"
        )
    return first @ second.mT / first.shape[-1]


def layers(
    student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Two layers a side, (B, L, D), in float32 or wider; the teacher detached, zeros where the mask is False.

    Raises ObjectiveError when there are more or fewer, places differ, or the mask is not bool (B, L).
    """
    sides: dict[str, Tensor | Sequence[Tensor]] = {"student": student, "teacher": teacher}
    for side, given in sides.items():
        if isinstance(given, Tensor) or len(given) != 2:
            said = f"a tensor {tuple(given.shape)}" if isinstance(given, Tensor) else f"{len(given)} tensors"
            raise ObjectiveError(
                f'{side} gives {said}; expected two layers, as in {side} = ["hidden[0]", "hidden[-1]"]'
            )
    ours, theirs = [spread(x) for x in student], [spread(x.detach()) for x in teacher]
    for other in (*ours[1:], *theirs):
        for place, name in enumerate(AXES):
            if ours[0].shape[place] != other.shape[place]:
                shapes = f"student {shaped(student)}, teacher {shaped(teacher)}"
                raise ObjectiveError(f"{name} differ: {ours[0].shape[place]} and {other.shape[place]}; {shapes}")
    require_mask(ours[0], mask)
    return [blanked(x, mask) for x in ours], [blanked(x, mask) for x in theirs]


def spread(layer: Tensor) -> Tensor:
    """A layer as tokens, (B, L, D), in float32 or wider: a map's places become tokens."""
    if layer.dim() == 4:
        layer = layer.flatten(2).transpose(1, 2)
    if layer.dim() != 3:
        raise ObjectiveError(
            f"expected (batch, tokens, features) or (batch, channels, height, width), got {tuple(layer.shape)}"
        )
    return widened(layer)


def shaped(layers: Sequence[Tensor]) -> str:
    """The shapes of layers: `(2, 3, 4) and (2, 3, 4)`."""
    return " and ".join(str(tuple(layer.shape)) for layer in layers)
