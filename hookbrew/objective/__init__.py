"""Taps, losses, projections and weights become one scalar and its named parts."""

from hookbrew.objective.inputs import Names, accepted
from hookbrew.objective.objective import Objective
from hookbrew.objective.reach import reach
from hookbrew.objective.reduce import valid_mean

__all__ = ["Names", "Objective", "accepted", "reach", "valid_mean"]
