"""The output head of a model: the plain linear layer whose output its logits are.

B batch, L tokens, D features, V classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hookbrew.errors import ObjectiveError
from hookbrew.objective.chunk import Side
from hookbrew.taps import Taps, unwrap
from hookbrew.taps.hook import Live


class Head(NamedTuple):
    """A head that was found."""

    path: str
    module: nn.Linear

    @property
    def selector(self) -> str:
        """What goes into it."""
        return f"{self.path}:in"

    def side(self, hidden: Tensor, classes: int | None = None) -> Side:
        """Its weights as they are now beside hidden states, (..., D); classes: without the padding after so many."""
        weight, bias = self.module.weight, self.module.bias
        if classes is None or classes == len(weight):
            return Side(hidden, weight, bias)
        return Side(hidden, weight[:classes], None if bias is None else bias[:classes])


class Look(NamedTuple):
    """What a forward of one sample shows of logits."""

    positions: int
    """How many rows those of the whole batch have."""
    classes: int
    head: Head | None
    """None where they are not the output of one."""


def look(model: nn.Module, selector: str, inputs: Mapping[str, Any]) -> Look:
    """The logits that a selector reads, in a forward of the first sample of a batch.

    That a tensor is a layer's own, and not only equal to it, rules out what happens to do nothing yet, as an adapter
    that begins with zeros. Raises ObjectiveError where it is no single tensor.
    """
    calls: dict[str, list[tuple[Tensor, int]]] = {}

    def seen(path: str) -> Callable[..., None]:
        return lambda _module, _given, output: calls.setdefault(path, []).append((output, output._version))

    layers = {path: m for path, m in unwrap(model).named_modules() if plain(m) and untouched(m)}
    sample, samples = first(inputs)
    with torch.no_grad(), ExitStack() as stack:
        for path, layer in layers.items():
            stack.callback(layer.register_forward_hook(seen(path)).remove)
        taps = stack.enter_context(Taps(model, {"logits": selector}))
        taps.run(**sample)
        logits = taps["logits"]
    if not isinstance(logits, Tensor) or logits.dim() < 2:
        raise ObjectiveError(f"{selector!r} is not one tensor of logits for each sample")
    found = [path for path, outputs in calls.items() if len(outputs) == 1 and own(*outputs[0], logits)]
    positions = logits.shape[:-1].numel() * samples // len(logits)
    return Look(positions, logits.shape[-1], Head(found[0], layers[found[0]]) if found else None)


def own(output: Tensor, version: int, logits: Tensor) -> bool:
    """Whether logits are the very numbers that a layer gave, and nobody has written into them."""
    same = output.data_ptr() == logits.data_ptr() and output.stride() == logits.stride()
    return same and output.shape == logits.shape and output.dtype == logits.dtype and logits._version == version


def plain(module: nn.Module) -> bool:
    """Whether a layer is x W^T + b of its own dense parameters, whatever the rest of the model does."""
    if type(module) is not nn.Linear or "forward" in vars(module):  # parametrized or with an adapter, it has a class
        return False
    parameters = [module.weight, *([] if module.bias is None else [module.bias])]
    return all(type(p) is nn.Parameter and p.is_floating_point() for p in parameters)


def untouched(module: nn.Module) -> bool:
    """Whether no hook but a tap is on a layer: one may change what it is given or gives."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return all(isinstance(hook, Live) for kind in hooks for hook in kind.values())


def first(inputs: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """The first sample of a batch, or all of it where that cannot be told, and how many there are in all."""
    sizes = {value.shape[0] if isinstance(value, Tensor) and value.dim() else 0 for value in inputs.values()}
    if len(sizes) != 1 or 0 in sizes:
        return dict(inputs), max(sizes, default=0)
    return {key: value[:1] for key, value in inputs.items()}, sizes.pop()
