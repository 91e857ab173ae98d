"""A proof that a model sees its features, heads and neurons as sets, before any of them are taken away."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from hookbrew.chance import seeded
from hookbrew.errors import SurgeryError
from hookbrew.surgery.axes import HIDDEN, Axes, Choice, cut, lasting, surveyed
from hookbrew.surgery.rebuild import blank, rebuilt
from hookbrew.surgery.sample import run

CLOSE: Final = 1e-3
"""How far outputs may be apart, relative to the largest: the order of sums in fp32 changes them by far less."""


def close(one: Tensor, other: Tensor) -> bool:
    """Whether two outputs are the same but for rounding."""
    return one.shape == other.shape and bool((one - other).abs().max() <= CLOSE * one.abs().max())


def require_proven(model: nn.Module, config: Any, sample: Any, known: Axes) -> None:
    """Raise SurgeryError unless a model of this config computes the same with all its units in another order.

    A feature that is taken for a head's, or is missed in one tensor, would show: nothing else of the model can undo the
    exchange. So do numbers that are computed from a place in the hidden width, as sinusoids are.
    """
    with seeded(0):
        blanks = lasting(blank(model, config, "cpu"))
        noise = {id(tensor): noisy(tensor) for tensor in blanks.values()}
        found = {name: noise[id(tensor)] for name, tensor in blanks.items()}
        first = rebuilt(model, config, found).eval()
        axes = surveyed(first, partial(run, first, sample), known)
        for units in exchanges(axes):
            second = rebuilt(model, config, cut(found, axes, units)).eval()
            with torch.no_grad():
                ours, theirs = outputs(run(first, sample)), outputs(run(second, sample))
            order = units.get((HIDDEN, ""), torch.arange(0))
            for one, other in zip(ours, theirs, strict=True):
                turned = one[..., order] if one.shape[-1:] == order.shape else one
                if not close(one, other) and not close(turned, other):
                    raise SurgeryError(
                        f"{type(model).__name__} cannot be made narrower: with its features, heads and neurons in"
                        " another order it computes something else, so some part of it does not only see them as a set"
                    )


def exchanges(axes: Axes) -> Iterator[dict[Choice, Tensor]]:
    """Other orders of the units: of all choices, then of every second one, as if the rest had nothing to do with it."""
    keys = sorted(axes.sizes())
    for chosen in (keys, keys[::2]):
        yield {key: shuffled(axes.sizes()[key]) for key in chosen}


def shuffled(size: int) -> Tensor:
    """A random order that is not the first one, unless there is no other."""
    order = torch.randperm(size)
    return order.roll(1) if torch.equal(order, torch.arange(size)) else order


def require_saved(model: nn.Module, axes: Axes) -> None:
    """Raise SurgeryError for a tensor that a width decides and no file holds: it is computed on loading."""
    skipped = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_save", None) or ()]
    found = lasting(model)
    written = {id(tensor) for name, tensor in found.items() if not any(rule.search(name) for rule in skipped)}
    for axis in axes.axes:
        if id(found[axis.tensor]) not in written:
            raise SurgeryError(
                f"{type(model).__name__} cannot be made narrower: '{axis.tensor}' is not saved but computed from the"
                " width when the model is loaded, so what is cut out of it would be lost"
            )


def noisy(tensor: Tensor) -> Tensor:
    """Random numbers for a parameter, of a size that keeps activations where they are; a buffer as it is."""
    if not isinstance(tensor, nn.Parameter) or not tensor.is_floating_point():
        return tensor
    noise = torch.randn(tensor.shape) / tensor.shape[-1] ** 0.5
    return nn.Parameter(noise if tensor.dim() > 1 else 1 + 0.3 * torch.randn(tensor.shape), tensor.requires_grad)


def outputs(found: Any) -> list[Tensor]:
    """The tensors of an output that are no cache, in their order."""
    values = found.values() if isinstance(found, Mapping) else found if isinstance(found, tuple | list) else [found]
    return [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]
