"""One of the models that are compared, and what of a batch goes into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from hookbrew.errors import HookbrewError
from hookbrew.objective import Names, accepted, parted


@attrs.frozen(kw_only=True)
class Entry:
    """A model with its name, and how it reads a batch."""

    name: str
    module: nn.Module
    side: tuple[str, ...] = ("student",)
    """Whose parts of a batch it is given, as `parted` names them: the student's, or `("teacher", "large")`."""
    logits: str | Sequence[str] = "logits"
    """The selector of its logits, or several."""
    layers: str = "hidden[*]"
    """The selector of the layers whose similarity is measured."""
    chosen: bool = False
    """Whether somebody asked for these layers: then it is an error that there are none."""
    free: bool = False
    """Whether nobody said yet if it is a teacher or a student."""
    disk: int | None = None
    """Bytes of the files that its weights were read from; None if they were not."""

    def own(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What a batch has for it."""
        return parted(batch, *self.side)

    def inputs(self, batch: Mapping[str, Any], names: Names) -> dict[str, Any]:
        """The arguments of its forward; raises DataError when the batch lacks one."""
        own = self.own(batch)
        kept = [*names.kept, names.index]
        return {key: own[key] for key in accepted(self.module, own, kept)}

    def to(self, device: torch.device) -> Entry:
        """It on a device."""
        self.module.to(device)
        return self

    @property
    def selectors(self) -> dict[str, str]:
        """Those of its logits, by the names of taps."""
        several = [self.logits] if isinstance(self.logits, str) else self.logits
        return {f"logits {number}": selector for number, selector in enumerate(several)}


def entered(models: Mapping[str, nn.Module], names: Names) -> list[Entry]:
    """The models in their order: the first is what the others are compared with. Raises HookbrewError for none."""
    if not models:
        raise HookbrewError("there is no model to compare")
    made = []
    for place, (name, model) in enumerate(models.items()):
        first = place == 0 and len(models) > 1
        logits = "logits" if first and isinstance(names.logits, str) else names.logits
        side = ("teacher", "teacher") if first else ("student",)
        made.append(Entry(name=name, module=model, side=side, logits=logits))
    return made


def placed(entries: Sequence[Entry]) -> torch.device:
    """The device of all models; raises HookbrewError when there are several."""
    found: dict[torch.device, str] = {}
    for entry in entries:
        for tensor in (*entry.module.parameters(), *entry.module.buffers()):
            found.setdefault(tensor.device, entry.name)
    if len(found) > 1:
        where = " and ".join(f"{name!r} on {device}" for device, name in found.items())
        raise HookbrewError(f"models are compared on one device, and {where}; move them to one")
    return next(iter(found), torch.device("cpu"))


def weight(tensors: Sequence[Tensor]) -> int:
    """Bytes of tensors, one of several names once; parts of one memory, as cuDNN has those of an LSTM, are several."""
    seen = {(tensor.data_ptr() or id(tensor), tensor.shape): tensor for tensor in tensors}
    return sum(tensor.numel() * tensor.element_size() for tensor in seen.values())
