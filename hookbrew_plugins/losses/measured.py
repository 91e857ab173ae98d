"""A loss that learns a map between the student and the teacher, whose sizes the first batch tells."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from hookbrew.errors import ObjectiveError


class Measured(nn.Module, ABC):
    """Modules that depend on sizes are made by the first forward, or by a state_dict that is loaded before it.

    What is trained must be complete before an optimizer takes its parameters: `Objective.measure` sees to that.
    """

    sizes: tuple[int, ...] = ()
    """What was measured; empty before that."""

    @abstractmethod
    def make(self, *sizes: int) -> None:
        """Make the modules for these sizes."""

    def measure(self, like: Tensor, *sizes: int) -> None:
        """Make the modules if there are none yet, with the device and the precision of a tensor.

        They are in the mode of the loss, then and later: who set it may not have known them. sizes: the features of
        the student, those of the teacher, and what else the modules need.

        Raises ObjectiveError for other features than those that the modules were made for.
        """
        if not self.sizes:
            self.make(*sizes)
            self.sizes = sizes
            self.to(like.device, like.dtype)
        if sizes[:2] != self.sizes[:2]:
            now, then = (" and ".join(map(str, found[:2])) for found in (sizes, self.sizes))
            raise ObjectiveError(
                f"student and teacher have {now} features, and what this loss learns was made for {then}: write a "
                "table for each pair of layers"
            )
        self.train(self.training)

    def get_extra_state(self) -> Tensor:
        """The sizes, long, as a part of the state_dict."""
        return torch.tensor(self.sizes, dtype=torch.long)

    def set_extra_state(self, state: Tensor) -> None:
        """Make the modules for the sizes of a state_dict, before torch fills them."""
        if len(state) and not self.sizes:
            sizes = tuple(state.tolist())
            self.make(*sizes)
            self.sizes = sizes
