"""A teacher as whoever answers for it sees it: what it gets of a batch, and what the losses read of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from torch import Tensor, nn

from hookbrew.objective.attended import ATTENDED
from hookbrew.objective.inputs import Inputs, Names
from hookbrew.objective.source import Source
from hookbrew.objective.view import View

Ask = Callable[[str, Mapping[str, Any]], Any]
"""The name of a teacher and a batch to what the teacher returned, or None; `Seat.place` says what the losses read."""


@attrs.frozen(kw_only=True)
class Seat:
    """One of the teachers of an objective."""

    name: str
    at: str
    """Where it stands in the configuration: `tasks.trec.teachers.large`."""
    model: nn.Module
    shared: bool
    """Whether the student trains a part of it."""
    names: Names
    sources: Sequence[Source]
    """The losses that read it."""
    _inputs: Inputs
    _view: View

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What it gets of a batch."""
        return self._inputs.of(self.name, batch)

    def run(self, batch: Mapping[str, Any]) -> Any:
        """Its forward, recorded; None if that was stopped."""
        return self._view.run(self.name, self.inputs(batch))

    def seen(self) -> dict[str, Tensor]:
        """All that the losses read of its last forward, by canonical path."""
        return self._view.seen(self.name)

    def attended(self) -> dict[str, bool]:
        """What of `seen` is of an attention: whether it relates tokens to tokens, (B, H, L, S), or is (B, H, L, D)."""
        return {
            path: ATTENDED[source.takes].square
            for source in self.sources
            if source.takes in ATTENDED
            for path in self._view.paths(self.name, source.path)
        }

    def place(self, tensors: Mapping[str, Tensor]) -> None:
        """Let the losses read these, by the paths that `seen` had before."""
        self._view.place(self.name, tensors)
