"""Layers chosen by measuring on data how little each of them changes its input.

Men et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect" (arXiv 2403.03853),
Block Influence: BI_i = 1 - E[cos(x_i, x_i+1)], the mean over positions of what a layer is given and what it gives.
A layer of small influence is the nearest to doing nothing, and goes first. All are measured in the whole model,
once; how a layer does after others went is not asked. Letters: B batch, L tokens, D features.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hookbrew.errors import SelectorError, SurgeryError
from hookbrew.modes import evaluating
from hookbrew.surgery.sample import called, mask
from hookbrew.taps import Taps
from hookbrew.taps.selector import spell


def best(model: nn.Module, path: str, count: int, batches: Iterable[Any]) -> list[int]:
    """The numbers, rising, of the `count` layers of the list at a path that change their inputs most.

    batches: what the model is called with; positions that a mask leaves out do not count. Of layers that change theirs
    alike, the first stay. SurgeryError for a number of layers that the list does not have, and without batches.
    """
    scores = influence(model, path, batches)
    if isinstance(count, bool) or not 1 <= count <= len(scores):
        raise SurgeryError(f"best: {count!r} layers of '{path}', which has {len(scores)}")
    return scores.sort(descending=True, stable=True).indices[:count].sort().values.tolist()


def influence(model: nn.Module, path: str, batches: Iterable[Any]) -> Tensor:
    """The block influence of each layer of the list at a path, float64 (layers,): 0 for one that only scales its input.

    SurgeryError without batches, and for layers that do not give what they are given: (B, L, D), or (B, D).
    """
    total = len(model.get_submodule(path)._modules)
    where = ".".join(map(spell, path.split(".")))
    names = [(f"{where}.{number}:in", f"{where}.{number}:out") for number in range(total)]
    sums, counts = torch.zeros(total, dtype=torch.float64), torch.zeros(total, dtype=torch.float64)
    with evaluating(model), torch.no_grad(), Taps(model, {name: name for pair in names for name in pair}) as taps:
        for batch in batches:
            args, kwargs = called(model, batch)
            taps.run(*args, **kwargs)
            for number, (given, made) in enumerate(names):
                turned = angles(model, f"{path}.{number}", batch, read(taps, given), read(taps, made))
                sums[number] += turned.double().sum().cpu()
                counts[number] += turned.numel()
    if not bool((counts > 0).all()):
        raise SurgeryError("best: it is measured on data, and batches has none, or nothing but padding")
    return sums / counts


def read(taps: Taps, name: str) -> Tensor:
    """What a tap saw; SurgeryError for a layer that gives no tensor, or runs several times."""
    try:
        found = taps[name]
    except SelectorError as error:
        raise SurgeryError(f"best: the layers cannot be measured: {error}") from error
    if not isinstance(found, Tensor):
        raise SurgeryError(f"best: {name} is no tensor, so the layers cannot be compared")
    return found


def angles(model: nn.Module, path: str, batch: Any, given: Tensor, made: Tensor) -> Tensor:
    """1 - cos of what a layer was given and what it gave, at the positions that count, (N,)."""
    if given.shape != made.shape or given.dim() < 2:
        raise SurgeryError(
            f"best: '{path}' is given {tuple(given.shape)} and gives {tuple(made.shape)}: only layers that keep the"
            " shape can be compared"
        )
    apart = 1 - F.cosine_similarity(given.float(), made.float(), dim=-1)
    valid = mask(model, path, batch, given.shape)
    return apart.flatten() if valid is None else apart[valid.to(apart.device)]
