"""Losses on hidden states. B batch, L tokens, D features; pooled states are (B, D)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from hookbrew.objective import valid_mean
from hookbrew.plugin import options, positive
from hookbrew_plugins.losses.shapes import paired


@options
class HiddenMSE:
    """Mean squared difference of two hidden states, over features and valid positions.

    FitNets (Romero et al. 2015, eq. 3, without the 1/2 and as a mean), TinyBERT (Jiao et al. 2020, eq. 8).
    """

    takes: ClassVar[str] = "hidden"

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return hidden_mse


@options
class Cos:
    """1 - cosine of the angle between two hidden states, mean over valid positions (DistilBERT, Sanh et al. 2019)."""

    takes: ClassVar[str] = "hidden"

    epsilon: float = positive(1e-8)
    """A vector shorter than this has no direction: its cosine counts as 0, without a gradient."""

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return partial(cos, epsilon=self.epsilon)


@options
class PKD:
    """Squared distance of the directions of first tokens, mean over samples (Patient KD, Sun et al. 2019, 3.2).

    The first token is the first that the mask leaves: [CLS], on whichever side the padding is.
    """

    takes: ClassVar[str] = "hidden"
    counts: ClassVar[str] = "samples"

    epsilon: float = positive(1e-8)
    """A vector shorter than this has no direction: it counts as 0, without a gradient."""

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return partial(pkd, epsilon=self.epsilon)


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """mean_d (student_d - teacher_d)^2, mean over valid positions, a scalar.

    student, teacher: (B, L, D) or (B, D); the teacher receives no gradient. mask: bool (B, L) or (B,).
    The mean over features keeps the meaning of a weight when the width changes.

    Raises ObjectiveError when the shapes do not fit.
    """
    student, teacher = paired(student, teacher, mask, "features")
    if mask is None and student.numel() and student.dtype == teacher.dtype:
        return functional.mse_loss(student, teacher).clone()  # one pass; torch leaves the scalar all of its buffer
    return valid_mean((student - teacher).square().mean(dim=-1), mask)


def cos(student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, epsilon: float = 1e-8) -> Tensor:
    """1 - <student, teacher> / (|student| |teacher|), mean over valid positions, a scalar from 0 to 2.

    student, teacher: (B, L, D) or (B, D); the teacher receives no gradient. mask: bool (B, L) or (B,).
    A vector shorter than epsilon gives 1 and no gradient: dividing by epsilon would give one of size 1 / epsilon.

    Raises ObjectiveError when the shapes do not fit.
    """
    student, teacher = paired(student, teacher, mask, "features")
    ours, theirs = lengths(student), lengths(teacher)
    short = (ours < epsilon) | (theirs < epsilon)
    dot = (student * teacher).sum(dim=-1).masked_fill(short, 0.0)
    return valid_mean(1.0 - dot / (ours * theirs).masked_fill(short, 1.0), mask)


def pkd(student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, epsilon: float = 1e-8) -> Tensor:
    """sum_d (student_d / |student| - teacher_d / |teacher|)^2 of first tokens, mean over samples, a scalar from 0 to 4.

    student, teacher: (B, L, D), or (B, D) of first tokens already; the teacher receives no gradient. mask: bool (B, L)
    or (B,); a sample without any valid token does not count. A vector shorter than epsilon counts as 0 and gets no
    gradient. TextBrewer's `pkd`, which takes position 0 whatever the mask says and has no epsilon.

    Raises ObjectiveError when the shapes do not fit.
    """
    student, teacher = paired(student, teacher, mask, "features")
    if student.dim() > 2:
        place = 0 if mask is None else mask.int().argmax(dim=1)
        samples = torch.arange(len(student), device=student.device)
        student, teacher = student[samples, place], teacher[samples, place]
        mask = None if mask is None else mask.any(dim=1)
    return valid_mean((unit(student, epsilon) - unit(teacher, epsilon)).square().sum(dim=-1), mask)


def unit(vectors: Tensor, epsilon: float) -> Tensor:
    """Vectors of length 1 over the last dimension; zeros, without a gradient, for one that is shorter than epsilon."""
    size = lengths(vectors).unsqueeze(-1)
    short = size < epsilon
    return vectors.masked_fill(short, 0.0) / size.masked_fill(short, 1.0)


def lengths(vectors: Tensor) -> Tensor:
    """The Euclidean lengths over the last dimension: (..., D) to (...)."""
    found: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return found
