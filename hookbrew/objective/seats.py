"""The seats of an objective: its teachers, for whoever answers in their place."""

from __future__ import annotations

from hookbrew.objective.objective import Objective
from hookbrew.objective.seat import Seat


def seats(objective: Objective) -> dict[str, Seat]:
    """The teachers that losses compare with, by name; after `measure`, which settles what they get."""
    alone = [*objective.teachers] == ["teacher"]
    return {
        name: Seat(
            name=name,
            at=f"{objective._at}teacher" if alone else f"{objective._at}teachers.{name}",
            model=model,
            shared=not {*model.modules()}.isdisjoint(objective.student.modules()),
            names=objective.names,
            sources=[source for source in objective.sources if name in source.teachers],
            inputs=objective._inputs,
            view=objective._view,
        )
        for name, model in objective.teachers.items()
        if name not in objective.idle
    }
