"""A term: one loss between one tensor of the student and, usually, one of the teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
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
    """Which element of the lists that the selectors gave; None when they gave single tensors, or all are compared."""
    scope: Scope
    """What it counts."""
    projection: nn.Module | None = None

    def pick(self, captured: Any) -> Any:
        """This term's tensor out of what a selector gave."""
        return captured if self.pair is None else captured[self.pair]

    def mean(self, given: Mapping[str, Any], function: Callable[..., Tensor]) -> Tensor:
        """The mean of the loss over the valid positions, a scalar; given: its roles by name, the student as tapped.

        An exception of the loss gets a note that says which one it is and what it was given.
        """
        student = given["student"]
        if self.projection is not None:
            made = [self.projection(tensor) for tensor in listed(student)]
            student = made if isinstance(student, list) else made[0]
        given = {**given, "student": student}
        try:
            with exactly(listed(student)[0].device.type):
                return function(**{role: given[role] for role in self.source.roles})
        except Exception as error:
            shapes = ", ".join(
                f"{k} {tuple(listed(v)[0].shape)}" for k, v in given.items() if isinstance(v, Tensor | list)
            )
            error.add_note(f"raised by {self.source} on {shapes}")
            raise


def exactly(device: str) -> AbstractContextManager[object]:
    """No autocast inside: a loss chooses its own precision. Costs nothing where there is none."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def learned(terms: Iterable[Term]) -> dict[str, nn.Module]:
    """Projections and losses that are modules, by the names under which they are saved."""
    return {
        f"{term.name}/{type(module).__name__}".replace(".", "_"): module
        for term in terms
        for module in (term.projection, term.source.function)
        if isinstance(module, nn.Module)
    }


def listed(tensors: Tensor | list[Tensor]) -> list[Tensor]:
    """One tensor as a list of one."""
    return tensors if isinstance(tensors, list) else [tensors]
