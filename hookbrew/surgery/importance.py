"""How much each hidden feature, head and neuron does on data: activations, averaged over batches.

Muralidharan et al. 2024, "Compact Language Models via Pruning and Knowledge Distillation" (Minitron, arXiv 2407.14679),
section 2.2: a hidden feature by the outputs of the normalisations, a head by the norm of its output, a neuron by its
activation. Here each is the mean of absolute values over all positions that no mask leaves out. Two things differ: a
neuron is measured after the activation function (and the gate), which is what the layer below it reads; and heads that
share keys and values are one unit, measured by the norm of all they give. Letters: B batch, L tokens, D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from hookbrew.errors import NotCalledError, SurgeryError
from hookbrew.modes import evaluating
from hookbrew.surgery.axes import FFN, HEADS, HIDDEN, Axes, Axis, Choice
from hookbrew.surgery.sample import called, mask
from hookbrew.surgery.trace import IN, weighted
from hookbrew.taps import Taps
from hookbrew.taps.selector import spell


@attrs.frozen
class Gauge:
    """Where one choice is measured: a tap of one module."""

    path: str
    port: str
    axis: Axis

    @property
    def selector(self) -> str:
        """All calls of the module, of which there may be several."""
        return ".".join(map(spell, self.path.split("."))) + f"#*:{self.port}"

    def units(self, tensor: Tensor) -> Tensor:
        """(N, D) -> (N, units): how strong each unit is at each position."""
        if self.axis.role != HEADS:
            return tensor.abs()
        squares = tensor.new_zeros(len(tensor), self.axis.size)
        return squares.index_add_(1, self.axis.owner.to(tensor.device), tensor**2).sqrt()


def gauges(model: nn.Module, axes: Axes, roles: Iterable[str]) -> list[Gauge]:
    """Where these roles can be measured."""
    matrices = weighted(model)
    found = []
    for axis in axes.axes:
        path, _, name = axis.tensor.rpartition(".")
        module = model.get_submodule(path)
        if axis.role not in roles or name != "weight":
            continue
        if axis.role == HIDDEN and path not in matrices and len(axis.owner) == axis.size:
            found.append(Gauge(path, "out", axis))
        read = (axis.role == HEADS and (path, IN) in axes.ends) or (axis.role == FFN and path in axes.sources)
        if read and axis.dim == reading(module):
            found.append(Gauge(path, "in", axis))
    return found


def reading(module: nn.Module) -> int:
    """The dimension of a weight that meets the input: 1 of Linear, 0 of Conv1D."""
    return 0 if type(module).__name__ == "Conv1D" else 1


def importance(model: nn.Module, axes: Axes, roles: Iterable[str], batches: Iterable[Any]) -> dict[Choice, Tensor]:
    """For each choice of these roles the strength of its units, float64; summed over the places where it is measured.

    SurgeryError if there is no batch, or a choice that cannot be measured.
    """
    wanted = set(roles)
    places = gauges(model, axes, wanted)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    with evaluating(model), torch.no_grad(), Taps(model, {g.selector: g.selector for g in places}) as taps:
        for batch in batches:
            args, kwargs = called(model, batch)
            taps.run(*args, **kwargs)
            for gauge in places:
                for tensor in seen(taps, gauge):
                    strong = gauge.units(positions(model, gauge.path, batch, tensor))
                    sums[gauge.selector] = sums.get(gauge.selector, 0) + strong.double().sum(0).cpu()
                    counts[gauge.selector] = counts.get(gauge.selector, 0) + len(strong)
    return gathered(axes, wanted, places, {key: sums[key] / max(1, counts[key]) for key in sums})


def seen(taps: Taps, gauge: Gauge) -> list[Tensor]:
    """What a module gave in all its calls; nothing if it is a normalisation that the model does not use."""
    try:
        return list(taps[gauge.selector])
    except NotCalledError:
        if gauge.axis.role == HIDDEN:
            return []
        raise


def positions(model: nn.Module, path: str, batch: Any, tensor: Tensor) -> Tensor:
    """(B, L, D) -> (N, D), the positions that count."""
    valid = mask(model, path, batch, tensor.shape)
    return tensor[valid.to(tensor.device)] if valid is not None else tensor.reshape(-1, tensor.shape[-1])


def gathered(axes: Axes, roles: set[str], places: list[Gauge], means: Mapping[str, Tensor]) -> dict[Choice, Tensor]:
    """The means of all places of a choice, added up."""
    if places and not means:
        raise SurgeryError("by = 'importance' measures on data, and batches has none")
    found: dict[Choice, Tensor] = {}
    for gauge in places:
        key = gauge.axis.role, gauge.axis.group
        if gauge.selector in means:
            found[key] = found.get(key, 0) + means[gauge.selector]
    for role, group in axes.sizes():
        if role in roles and (role, group) not in found:
            where = f" of '{group}'" if group else ""
            raise SurgeryError(f"the {role} units{where} cannot be measured: no module reads them; use by = 'slice'")
    return found
