"""Where a layer is active: a loss on maps that leave the features out, so that their number may differ.

B batch, L tokens, D features; images have C channels, height H and width W.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from hookbrew.errors import ObjectiveError
from hookbrew.objective import valid_mean
from hookbrew.plugin import at_least, options, positive
from hookbrew_plugins.losses.hidden import unit
from hookbrew_plugins.losses.shapes import blanked, require_mask, widened


@options
class AT:
    """Mean squared difference of activation maps: the mean power of all features at a place, each map of length 1.

    Attention transfer (Zagoruyko and Komodakis 2017, eq. 2), as a mean over places like the authors' code, whose
    weight is 1000. Numbers of features may differ.
    """

    takes: ClassVar[str] = "features"

    power: float = at_least(1.0, 2.0)
    """p of |x|^p: a larger one looks at the strongest features more."""
    epsilon: float = positive(1e-8)
    """A map shorter than this counts as 0, without a gradient."""

    def build(self) -> Callable[..., Tensor]:
        """The loss, as a function of student, teacher and mask."""
        return partial(at, power=self.power, epsilon=self.epsilon)


def at(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, power: float = 2.0, epsilon: float = 1e-8
) -> Tensor:
    """(f_s / |f_s| - f_t / |f_t|)^2 with f = mean_d |x_d|^p, mean over valid places, a scalar.

    student, teacher: (B, L, D), or (B, C, H, W) whose places are H W; D or C of each its own; the teacher receives no
    gradient. mask: bool (B, L). |f| is the length over the valid places of a sample.

    Raises ObjectiveError when the shapes do not fit.
    """
    require_places(student, teacher)
    ours, theirs = (activity(side, mask, power) for side in (student, teacher.detach()))
    return valid_mean((unit(ours, epsilon) - unit(theirs, epsilon)).square(), mask)


def activity(tensor: Tensor, mask: Tensor | None, power: float) -> Tensor:
    """mean_d |x_d|^p: (B, L, D) to (B, L), (B, C, H, W) to (B, H W)."""
    if tensor.dim() == 4:
        tensor = tensor.flatten(2).transpose(1, 2)
    require_mask(tensor, mask)
    size = blanked(widened(tensor), mask).abs()
    found: Tensor = (size.square() if power == 2 else size.pow(power)).mean(dim=-1)
    return found


def require_places(student: Tensor, teacher: Tensor) -> None:
    """Raise ObjectiveError unless both have the same places."""
    shapes = f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
    if student.dim() not in (3, 4) or student.dim() != teacher.dim():
        raise ObjectiveError(f"expected (batch, tokens, features) or (batch, channels, height, width); {shapes}")
    features = -1 if student.dim() == 3 else 1
    if torch.Size(places(student, features)) != torch.Size(places(teacher, features)):
        raise ObjectiveError(f"places differ, only {'features' if features == -1 else 'channels'} may; {shapes}")


def places(tensor: Tensor, features: int) -> list[int]:
    """The sizes of all dimensions but that of the features."""
    return [size for place, size in enumerate(tensor.shape) if place != features % tensor.dim()]
