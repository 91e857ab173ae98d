"""A term: one loss between one tensor of the student and, usually, one of the teacher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from hookbrew.errors import ObjectiveError
from hookbrew.objective.align import Scope, Seen
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

    def mean(self, given: Mapping[str, Any], progress: float) -> Tensor:
        """The mean of the loss over the valid positions, a scalar; given: what it asks for, the student as tapped.

        An exception of the loss gets a note that says which one it is and what it was given.
        """
        function, student = self.source.function_at(progress), given["student"]
        if self.projection is not None:
            made = [self.projection(tensor) for tensor in listed(student)]
            student = made if isinstance(student, list) else made[0]
            given = {**given, "student": student}
        device = (student[0] if isinstance(student, list) else student).device.type
        try:
            if not torch.is_autocast_enabled(device):
                return function(**given)
            with torch.autocast(device, enabled=False):  # a loss chooses its own precision
                return function(**given)
        except Exception as error:
            shapes = ", ".join(
                f"{k} {tuple(listed(v)[0].shape)}" for k, v in given.items() if isinstance(v, Tensor | list)
            )
            error.add_note(f"raised by {self.source} on {shapes}")
            raise


def counted(terms: Sequence[Term], seen: Seen, samples: int) -> list[float | Tensor]:
    """What is valid in a batch for each term; numbers where no device has to be asked. Each scope is counted once."""
    found, values = dict[Scope, float | Tensor](), []
    for term in terms:
        scope = term.scope
        if scope not in found:
            found[scope] = seen.valid(term.source, scope).count(scope.counts, samples)
        values.append(found[scope])
    return values


def learned(terms: Iterable[Term]) -> dict[str, nn.Module]:
    """Projections and losses that are modules, by the names under which they are saved."""
    return {
        f"{term.name}/{type(module).__name__}".replace(".", "_"): module
        for term in terms
        for module in (term.projection, term.source.function)
        if isinstance(module, nn.Module)
    }


def require_scalar(name: str, value: Any) -> None:
    """Raise ObjectiveError for what a loss gave that is no mean."""
    if not isinstance(value, Tensor) or value.dim():
        shape = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ObjectiveError(f"loss {name!r} returned {shape}; expected a scalar tensor, the mean over valid positions")


def listed(tensors: Tensor | list[Tensor]) -> list[Tensor]:
    """One tensor as a list of one."""
    return tensors if isinstance(tensors, list) else [tensors]
