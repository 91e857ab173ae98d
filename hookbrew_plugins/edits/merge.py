"""Adapters are lent out as merged weights: where a student is saved that loads without them."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor, nn

from hookbrew.errors import SurgeryError
from hookbrew.loop import State
from hookbrew.taps import unwrap

Spot = tuple[nn.Module, str]
"""A module, and the name of a child of it."""


@attrs.frozen(eq=False)
class Lent:
    """An adapter that is out: where it stood, and the weight that it was merged into, as it was."""

    adapter: Any
    spots: list[Spot]
    weight: nn.Parameter
    own: Tensor


@attrs.define(eq=False)
class Merge:
    """Merges the adapters of a student when an evaluation ends, for who saves it then, and for good at the end.

    The next step, a checkpoint and an abort have them back, and the weights bit for bit.
    """

    priority: ClassVar[int] = -90

    _lent: list[Lent] = attrs.field(factory=list)

    def run_start(self, state: State) -> None:
        """Raise SurgeryError for a student whose adapters are gone, as after another training of it."""
        if not found(unwrap(state.student)):
            raise SurgeryError(
                "edit 'lora': the student has no adapters any more; write merge = false, and merge it later"
            )

    def step_start(self, state: State) -> None:
        """Train the adapters."""
        self._lift()

    def eval_end(self, state: State) -> None:
        """Whoever saves the student now saves a plain one."""
        self._lay(unwrap(state.student))

    def epoch_end(self, state: State) -> None:
        """As before the evaluation."""
        self._lift()

    def checkpoint_saving(self, state: State) -> None:
        """A checkpoint has the adapters."""
        self._lift()

    def run_end(self, state: State) -> None:
        """The student is plain from now on."""
        self._lay(unwrap(state.student))
        self._lent = []

    def run_abort(self, state: State) -> None:
        """Leave the adapters in."""
        self._lift()

    def _lay(self, student: nn.Module) -> None:
        if self._lent:
            return
        for adapter, spots in found(student).items():
            base: nn.Module = adapter.get_base_layer()
            weight = base.weight
            assert isinstance(weight, nn.Parameter)
            self._lent.append(Lent(adapter, spots, weight, weight.detach().clone()))
            with torch.no_grad():
                for name in adapter.active_adapters:
                    weight.add_(adapter.get_delta_weight(name).to(weight.dtype))
            base.train(adapter.training)
            for parent, child in spots:
                parent._modules[child] = base

    def _lift(self) -> None:
        for lent in reversed(self._lent):
            with torch.no_grad():
                lent.weight.copy_(lent.own)
            for parent, child in lent.spots:
                parent._modules[child] = lent.adapter
        self._lent = []


def found(student: nn.Module) -> dict[Any, list[Spot]]:
    """The adapters of a student, each with all the places where it stands."""
    made: dict[Any, list[Spot]] = {}
    for parent in student.modules():
        for name, child in parent._modules.items():
            if child is not None and hasattr(child, "get_delta_weight") and hasattr(child, "get_base_layer"):
                made.setdefault(child, []).append((parent, name))
    return made
