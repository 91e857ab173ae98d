"""Other modules: in the place of some, around them, between them, or none."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from hookbrew import Surgery
from hookbrew.config import Factory
from hookbrew.factory import build
from hookbrew.plugin import options

Edit = Callable[[Surgery], object]
"""What changes a model, by its surgery alone."""


@options
class Swap:
    """Puts new modules, each from one call of a factory, in the place of those that are there.

    All names of a module lead to the new one, which comes to its device, dtype and mode; who shared a weight with it
    shares the new one. What is saved is the edited model, which loads into one that was edited alike.
    """

    path: str
    """Which modules, as in selectors: encoder.layer[0:3].output, **.intermediate_act_fn."""
    module: Factory
    """What makes one: { factory = "torch.nn:GELU" }."""
    old: bool = False
    """Whether the factory is given the old module, as its first argument."""
    untie: bool = False
    """Let those who shared a weight with the old module keep it."""

    def build(self) -> Edit:
        """The edit."""

        def make(path: str, old: nn.Module) -> nn.Module:
            made: nn.Module = build(self.module, "module", *([old] if self.old else []))
            return made

        return lambda surgery: surgery.swap(self.path, make, untie=self.untie)


@options
class Wrap:
    """Puts new modules around those that are there: adapters, counters, noise.

    Weights stay tied, and hooks where they are. What is saved has the wrapper's names (`dense.base.weight`), and loads
    into a model that was wrapped alike.
    """

    path: str
    """Which modules, as in selectors: **.query, classifier."""
    module: Factory
    """What makes the new one of the old, its first argument: { factory = "my_project.lora:LoRA", rank = 4 }."""

    def build(self) -> Edit:
        """The edit."""
        return lambda surgery: surgery.wrap(self.path, lambda old: build(self.module, "module", old))


@options
class Insert:
    """Puts one new module into a Sequential or ModuleList; later elements get higher numbers.

    The configuration of a transformers model does not know of it, and so its `from_pretrained` does not load it.
    """

    path: str
    """Before which element: body[2]; one more than there are is the end."""
    module: Factory
    """What makes it: { factory = "torch.nn:LayerNorm", normalized_shape = 256 }."""

    def build(self) -> Edit:
        """The edit."""
        return lambda surgery: surgery.insert(self.path, build(self.module, "module"))


@options
class Remove:
    """Takes elements out of a Sequential, ModuleList or ModuleDict; later elements get lower numbers.

    The configuration of a transformers model does not know of it: what is saved then loads wrong, without an error.
    Take `keep` of `[student] from = "teacher"` for its layers.
    """

    path: str
    """Which elements, as in selectors: body[1,3]."""

    def build(self) -> Edit:
        """The edit."""
        return lambda surgery: surgery.remove(self.path)
