"""A term: one loss between one tensor of the student and, usually, one of the teacher."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor, nn

from hookbrew.objective.align import Scope
from hookbrew.objective.source import Source


@attrs.frozen(kw_only=True, eq=False)
class Term:
    """A loss on one pair of tensors."""

    name: str
    source: Source
    pair: int | None
    """Which element of the lists that the selectors gave; None when they gave single tensors."""
    scope: Scope
    """What it counts."""
    projection: nn.Module | None = None

    def pick(self, captured: Any) -> Any:
        """This term's tensor out of what a selector gave."""
        return captured if self.pair is None else captured[self.pair]

    def mean(self, student: Tensor, teacher: Tensor | None, mask: Tensor | None, labels: Tensor | None) -> Tensor:
        """The mean of the loss over the valid positions, a scalar.

        An exception of the loss gets a note that says which one it is and what it was given.
        """
        if self.projection is not None:
            student = self.projection(student)
        given = {"student": student, "teacher": teacher, "mask": mask, "labels": labels}
        try:
            with torch.autocast(student.device.type, enabled=False):  # a loss chooses its own precision
                return self.source.function(**{role: given[role] for role in self.source.roles})
        except Exception as error:
            shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in given.items() if isinstance(v, Tensor))
            error.add_note(f"raised by {self.source} on {shapes}")
            raise
