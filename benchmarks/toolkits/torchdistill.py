"""torchdistill: its box, its hooks, and a loss that is written by hand.

Its own KDLoss is a KL divergence and takes the softmax over dimension 1, which is that of tokens in a language model.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from side import Side, caught
from torch import Tensor, nn

PARTS = {
    "torchvision": (),
    "torchvision.datasets": (),
    "torchvision.models": (),
    "torchvision.models.densenet": ("_DenseBlock", "_Transition"),
    "torchvision.models.resnet": ("BasicBlock", "conv1x1"),
}
"""What it imports of torchvision, for image models and data, which no job has."""


def imported() -> Any:
    """Its module of boxes; where no build of torchvision fits torch, empty names stand for that during the import."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        parts = {name: ModuleType(name) for name in PARTS}
        for name, part in parts.items():
            for block in PARTS[name]:
                setattr(part, block, nn.Module)
            if above := parts.get(name.rpartition(".")[0]):
                setattr(above, name.rpartition(".")[2], part)
        sys.modules |= parts
    else:
        parts = {}
    from torchdistill.core import distillation

    for name in parts:
        del sys.modules[name]
    logging.getLogger("torchdistill").setLevel(logging.ERROR)
    return distillation


distillation = imported()


class Written(nn.Module):
    """The loss as its criterion: it reads what hooks have kept."""

    def __init__(self, side: Side) -> None:
        super().__init__()
        self.side = [side]
        self.places = side.places()

    def forward(self, student: Mapping[str, Any], teacher: Mapping[str, Any], targets: Tensor | None) -> Tensor:
        """student, teacher: outputs by path, that of the model itself under a dot."""
        found = []
        for kept, where in zip((student, teacher), self.places, strict=True):
            found.append(caught(kept["."]["output"], {path: kept[path]["output"] for path in where}, where))
        return self.side[0].loss(*found, {} if targets is None else {"labels": targets})


def train(side: Side) -> Callable[[], None]:
    """Its box, and the loop that its examples write around that."""
    device = side.loader.device
    hooks = [{"forward_hook": {"output": [*where]}} if where else {} for where in side.places()]
    named = {"forward_proc": "forward_batch_only_as_kwargs"}
    terms = {"written": {"criterion": Written(side), "weight": 1.0}}
    config = {
        "num_epochs": 1,
        "student": {**named, **hooks[0]},
        "teacher": {**named, **hooks[1], "requires_grad": False},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
    }
    box = distillation.DistillationBox(side.teacher, side.student, {}, config, device, [], False, 1)
    box.optimizer, box.grad_accum_step, box.max_grad_norm = side.adamw(), 1, None

    def fit() -> None:
        side.teacher.eval()
        box.pre_epoch_process()
        for batch in side.loader:
            given = {key: batch[key] for key in side.work.inputs}
            loss = box.forward_process(given, batch.get("labels"), None)
            box.post_forward_process(loss=loss)

    box.distributed = False
    return fit
