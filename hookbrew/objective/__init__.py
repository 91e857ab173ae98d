"""Taps, losses, projections and weights become one scalar and its named parts."""

from hookbrew.objective.chunk import Chunked, Side
from hookbrew.objective.glance import glance
from hookbrew.objective.hard import hard
from hookbrew.objective.inputs import TASK, Names, accepted, parted
from hookbrew.objective.objective import Objective
from hookbrew.objective.projection import Made
from hookbrew.objective.reach import reach
from hookbrew.objective.reduce import valid_mean
from hookbrew.objective.seat import Ask, Seat
from hookbrew.objective.seats import seats
from hookbrew.objective.source import Source
from hookbrew.objective.tasks import Tasks
from hookbrew.objective.teachers import Teachers
from hookbrew.objective.vector import Vector

__all__ = [
    "TASK",
    "Ask",
    "Chunked",
    "Made",
    "Names",
    "Objective",
    "Seat",
    "Side",
    "Source",
    "Tasks",
    "Teachers",
    "Vector",
    "accepted",
    "glance",
    "hard",
    "parted",
    "reach",
    "seats",
    "valid_mean",
]
