"""A new module comes to where the old one is: device, dtype and mode; and the old one follows on its way back."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

import attrs
import torch
from torch import Tensor, nn

from hookbrew.errors import SurgeryError
from hookbrew.taps.walk import join


class Home(NamedTuple):
    """Where a tensor is, and what its numbers are."""

    device: torch.device
    dtype: torch.dtype


class Stand(NamedTuple):
    """Where a module is and in which mode."""

    home: Home | None
    """None for a module without a tensor of floating point."""
    training: bool

    @classmethod
    def of(cls, module: nn.Module) -> Stand:
        """As it is now."""
        return cls(home(module), module.training)


@attrs.frozen(eq=False)
class Heir:
    """A module that has taken the place of another, and where it was then."""

    old: nn.Module
    new: nn.Module
    stand: Stand

    @classmethod
    def of(cls, old: nn.Module, new: nn.Module) -> Heir:
        """As the new one is now."""
        return cls(old, new, Stand.of(new))

    def catch_up(self) -> None:
        """Move the old one as the new one was moved since: `model.to("cuda")`, `model.half()`, `model.eval()`.

        What the new one holds has been moved with it.
        """
        now = Stand.of(self.new)
        if now == self.stand or any(module is self.old for module in self.new.modules()):
            return
        if now.training != self.stand.training:
            self.old.train(now.training)
        if now.home is not None and now.home != self.stand.home:
            self.old.to(device=now.home.device, dtype=now.home.dtype)


def tensors(module: nn.Module, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a module itself, without its children."""
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield join(path, name), tensor


def home(module: nn.Module) -> Home | None:
    """Where the first tensor of floating point is, parameters before buffers."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            return Home(tensor.device, tensor.dtype)
    return None


def settle(new: nn.Module, old: nn.Module | None, around: Collection[nn.Module], known: set[int]) -> None:
    """Bring a new module to device, dtype and mode of an old one; what has a name in the old one, to those of that.

    old: None for an insertion. around: where to look when the old one has no tensor, the nearest first. known: the
    ids of the model's modules and tensors: what is in the model already stays as it is.
    Raises SurgeryError for a module whose weights are on the meta device.
    """
    near = [*([] if old is None else [old]), *around]
    default = next(filter(None, map(home, near)), None)
    olds = dict(old.named_modules()) if old is not None else {}
    wanted: dict[int, Home] = {}
    for path, module in new.named_modules():
        if id(module) in known:
            continue
        twin = olds.get(path)
        module.training = near[0].training if twin is None else twin.training
        named = dict(tensors(twin, path)) if twin is not None else {}
        for name, tensor in tensors(module, path):
            target = named.get(name)
            if target is not None and target.is_floating_point():
                wanted[id(tensor)] = Home(target.device, target.dtype)
            elif default is not None:
                wanted[id(tensor)] = default

    def moved(tensor: Tensor) -> Tensor:
        goal = wanted.get(id(tensor))
        if goal is None or id(tensor) in known:
            return tensor
        if tensor.is_meta and goal.device.type != "meta":
            raise SurgeryError("the new module has no weights, it is on the meta device; build it on a real one")
        return tensor.to(device=goal.device, dtype=goal.dtype if tensor.is_floating_point() else None)

    for module in new.modules():
        if id(module) not in known:
            module._apply(moved, recurse=False)  # type: ignore[no-untyped-call]  # torch has no types
