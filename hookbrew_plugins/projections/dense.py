"""Projections: learned maps from the student's features to the teacher's, trained beside the student.

S student features, D teacher features.
"""

from __future__ import annotations

from torch import nn

from hookbrew.plugin import options


@options
class Linear:
    """An affine map: weight drawn from N(0, 0.02), bias 0, as in BERT and TextBrewer."""

    def build(self, student: int, teacher: int) -> nn.Module:
        """A module that maps (..., S) to (..., D), S = student and D = teacher."""
        return dense(student, teacher)


@options
class Relu:
    """An affine map as `linear`, then ReLU: for teachers whose features are not negative."""

    def build(self, student: int, teacher: int) -> nn.Module:
        """A module that maps (..., S) to (..., D), S = student and D = teacher."""
        return nn.Sequential(dense(student, teacher), nn.ReLU())


@options
class Tanh:
    """An affine map as `linear`, then tanh: for teachers whose features lie between -1 and 1."""

    def build(self, student: int, teacher: int) -> nn.Module:
        """A module that maps (..., S) to (..., D), S = student and D = teacher."""
        return nn.Sequential(dense(student, teacher), nn.Tanh())


def dense(student: int, teacher: int) -> nn.Linear:
    """nn.Linear(student, teacher) with weight from N(0, 0.02), 0.02 the standard deviation, and bias 0."""
    layer = nn.Linear(student, teacher)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer
