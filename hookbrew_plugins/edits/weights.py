"""Other weights, or the same that are trained no more."""

from __future__ import annotations

from collections.abc import Callable

from hookbrew import Surgery
from hookbrew.plugin import options


@options
class Freeze:
    """Never trains the parameters of some modules; the callback `freeze` does it for a part of the training.

    Parameters that they share with others are frozen there too. What is saved loads as ever.
    """

    path: str
    """Which modules, as in selectors: embeddings, encoder.layer[0:4]."""

    def build(self) -> Callable[[Surgery], object]:
        """The edit."""
        return lambda surgery: surgery.freeze(self.path)


@options
class Unfreeze:
    """Trains the parameters of some modules that were made, or frozen before, not to be trained."""

    path: str
    """Which modules, as in selectors: classifier, encoder.layer[-1]."""

    def build(self) -> Callable[[Surgery], object]:
        """The edit."""
        return lambda surgery: surgery.unfreeze(self.path)


@options
class Reset:
    """Draws the weights of some modules anew, by the seed of the configuration.

    As a transformers model draws those inside it, else by `reset_parameters()` of each module. What is saved loads as
    ever.
    """

    path: str
    """Which modules, as in selectors: classifier, encoder.layer[-2:]."""

    def build(self) -> Callable[[Surgery], object]:
        """The edit."""
        return lambda surgery: surgery.reset(self.path)
