"""Low-rank adapters, by peft: few numbers are trained beside weights that stay, and merged into them at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from torch import nn

from hookbrew import Surgery
from hookbrew.errors import SurgeryError
from hookbrew.plugin import fraction, options, positive
from hookbrew_plugins.edits.merge import Merge

NAME = "adapted"
"""What peft knows the one module by that it is shown."""


@options
class Lora:
    """Trains W + (alpha / rank) B A in place of W: A and B of a low rank, and nothing else (Hu et al. 2021, section 4).

    The adapters are peft's, so what it adapts can be named: Linear, Embedding, convolutions, Conv1D of GPT-2. With
    `merge`, a run leaves a plain student: evaluations by which `best` saves, and the end, see W + (alpha / rank) B A as
    W. Checkpoints have the adapters, for a run that goes on. Needs peft: pip install 'hookbrew[lora]'.
    """

    path: str
    """Which modules, as in selectors: **.attention.self.{query,value}."""
    rank: int = attrs.field(default=8, validator=attrs.validators.ge(1))
    """How many rows A has, and columns B."""
    alpha: float = positive(16.0)
    """The adapters are multiplied with alpha / rank."""
    dropout: float = fraction(0.0)
    """Of what A is given, in training."""
    train: list[str] = attrs.field(factory=list)
    """Modules that are trained beside the adapters, as in selectors: classifier."""
    merge: bool = True
    """Whether the run leaves a student without adapters, which loads without peft."""

    def build(self) -> Callable[[Surgery], object]:
        """The edit."""
        return self._edit

    def watch(self) -> Merge | None:
        """The callback that merges."""
        return Merge() if self.merge else None

    def _edit(self, surgery: Surgery) -> None:
        wrap = adapter(self)
        for name, module in surgery.model.named_children():
            if any(parameter.requires_grad for parameter in module.parameters()):
                surgery.freeze(name)
        surgery.wrap(self.path, wrap)
        for path in self.train:
            surgery.unfreeze(path)


def adapter(made: Lora) -> Callable[[nn.Module], nn.Module]:
    """What puts an adapter around a module; raises SurgeryError without peft."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise SurgeryError("edit 'lora' needs peft: pip install 'hookbrew[lora]'") from error

    def wrap(old: nn.Module) -> nn.Module:
        settings: dict[str, Any] = {"r": made.rank, "lora_alpha": made.alpha, "lora_dropout": made.dropout}
        turned = type(old).__name__ == "Conv1D"  # of GPT-2: its weight is (in, out)
        holder = nn.ModuleDict({NAME: old})
        try:
            inject_adapter_in_model(LoraConfig(target_modules=[NAME], fan_in_fan_out=turned, **settings), holder)
        except ValueError as error:
            message = f"peft adapts no {type(old).__name__}: {' '.join(str(error).split())}"
            raise SurgeryError(message) from error
        return holder[NAME]

    return wrap
