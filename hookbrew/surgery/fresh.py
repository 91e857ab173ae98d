"""Weights drawn anew, in place: by the model's own way where it has one, else by each module's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import attrs
import torch
from torch import Tensor, nn

from hookbrew.errors import SurgeryError
from hookbrew.surgery.carry import tensors
from hookbrew.taps.walk import join
from hookbrew.words import several

DONE: Final = "_is_hf_initialized"
"""The mark of transformers on what shall not be drawn again."""


@attrs.define(eq=False)
class Values:
    """The numbers of some modules, which become other ones in the same tensors."""

    modules: Sequence[tuple[str, nn.Module, nn.Module | None]]
    """With its path, and the module around it that knows how to draw its weights."""
    before: list[tuple[Tensor, Tensor]] = attrs.field(factory=list)

    def do(self) -> None:
        """Draw; the old numbers come back if somebody fails on the way."""
        held = {t: None for _, module, _ in self.modules for t in (*module.parameters(), *module.buffers())}
        self.before = [(tensor, tensor.detach().clone()) for tensor in held]
        try:
            with torch.no_grad():
                for path, module, owner in self.modules:
                    drawn(path, module, owner)
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """The old numbers."""
        with torch.no_grad():
            for tensor, then in self.before:
                tensor.copy_(then)

    def broken(self) -> str | None:
        """Never: what was trained since goes with what was drawn."""
        return None


def drawer(model: nn.Module, path: str) -> nn.Module | None:
    """The nearest module around a path that draws weights for those inside, as models of transformers do."""
    parts = path.split(".")
    for end in range(len(parts) - 1, -1, -1):
        around = model.get_submodule(".".join(parts[:end]))
        if draws(around):
            return around
    return None


def draws(module: nn.Module) -> bool:
    """Whether a module has a way of its own to draw the weights of those inside it."""
    return callable(getattr(module, "_init_weights", None)) and hasattr(module, "config")


def drawn(path: str, module: nn.Module, owner: nn.Module | None) -> None:
    """Draw all weights in a module, the inner ones first. SurgeryError for parameters that nobody can draw."""
    for name, child in module._modules.items():
        if child is not None:
            drawn(join(path, name), child, module if draws(module) else owner)
    way = own_way(module)
    around = module if draws(module) else owner
    own = [(name, tensor) for name, tensor in tensors(module) if isinstance(tensor, nn.Parameter)]
    before = [tensor._version for _, tensor in own]
    if around is not None:
        with unmarked(module):
            around._init_weights(module)  # type: ignore[operator]  # callable, as `draws` has seen
    left = [name for (name, tensor), version in zip(own, before, strict=True) if tensor._version == version]
    if left and way is not None:
        way()
    elif left:
        raise SurgeryError(
            f"'{path}' cannot be reset: {type(module).__name__} has no reset_parameters(), and nobody else draws its"
            f" {several(left)}"
        )
    elif way is not None and not own and around is None:
        way()


def own_way(module: nn.Module) -> Callable[[], Any] | None:
    """The method with which modules of torch draw their weights."""
    for name in ("reset_parameters", "_reset_parameters"):
        if callable(way := getattr(module, name, None)):
            return way  # type: ignore[no-any-return]  # callable, as just checked
    return None


@contextmanager
def unmarked(module: nn.Module) -> Iterator[None]:
    """The marks of transformers are off inside: what has one is left as it is."""
    marked = [each for each in (*module.modules(), *module.parameters(), *module.buffers()) if DONE in vars(each)]
    values = [vars(each).pop(DONE) for each in marked]
    try:
        yield
    finally:
        for each, value in zip(marked, values, strict=True):
            setattr(each, DONE, value)
