"""A narrower model out of a wider one: fewer hidden features, heads and neurons, in a config that says so.

The hidden features are chosen once for the whole model: embeddings, normalisations, everything that reads or writes
the stream between the layers, and the head. Heads are removed whole, each with all its features; heads that share keys
and values go together. Heads and neurons are chosen layer by layer, except where layers share a module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from hookbrew import words
from hookbrew.chance import seeded
from hookbrew.errors import SurgeryError
from hookbrew.surgery.axes import FFN, HEADS, HIDDEN, Axes, surveyed
from hookbrew.surgery.importance import Choice, importance
from hookbrew.surgery.rebuild import blank, rebuilt, tensors
from hookbrew.surgery.sample import run, single
from hookbrew.surgery.sizes import Sizes, configured, measured, resized

WAYS: Final = ("slice", "importance")
CLOSE: Final = 1e-3
"""How far outputs may be apart, relative to the largest: the order of sums in fp32 changes them by far less."""


def narrowed(
    model: nn.Module,
    *,
    hidden: int | None = None,
    heads: int | None = None,
    ffn: int | None = None,
    by: str = "slice",
    batches: Iterable[Any] | None = None,
) -> nn.Module:
    """A new transformers model with fewer hidden features, heads of queries, and neurons between; None keeps a width.

    by: "slice" keeps the first units, "importance" those that do most on batches (importance.py). Heads keep their
    features: where they fill the hidden width, as in BERT, hidden alone says how many are left. The model is not
    touched, and shares no tensor with the new one. With all widths kept the new one gives the same outputs bit for bit.

    Which part of which tensor a width decides is measured, and proven on random weights before the model's own are
    cut: SurgeryError for a model that does not pass, for widths that do not fit, and for one that is not of
    transformers.
    """
    if by not in WAYS:
        raise SurgeryError(f"by = {by!r} is no way to choose what is kept; {words.hint(by, WAYS)}")
    config = configured(model)
    sizes = measured(config)
    require_smaller(sizes, {"hidden": hidden, "heads": heads, "ffn": ffn})
    if all(new in (None, old) for new, old in ((hidden, sizes.hidden), (heads, sizes.heads), (ffn, sizes.ffn))):
        return rebuilt(model, config, lasting(model))
    given = None if batches is None else list(batches)
    sample = single(model, given)
    axes = surveyed(model, partial(run, model, sample))
    target = fitted(sizes, axes, hidden, heads, ffn)
    loose = axes.free and target.hidden != target.heads * axes.head
    smaller = resized(config, target, axes.head if loose else None)
    require_proven(model, smaller, sample)
    return rebuilt(model, smaller, cut(lasting(model), axes, kept(model, axes, target, by, given)))


def require_smaller(sizes: Sizes, asked: Mapping[str, int | None]) -> None:
    """Raise SurgeryError for a width that is none, or is more than the model has."""
    for name, value in asked.items():
        have = getattr(sizes, name)
        if value is not None and have is None:
            raise SurgeryError(f"{name} = {value}: the config says nothing of that width, so it cannot be cut")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= have):
            raise SurgeryError(f"{name} = {value!r}: expected a number from 1 to the teacher's {have}")


def fitted(sizes: Sizes, axes: Axes, hidden: int | None, heads: int | None, ffn: int | None) -> Sizes:
    """The widths that were asked for, the others kept or following; SurgeryError says why they do not go together."""
    head = axes.head
    if not axes.ends and (hidden or heads):
        raise SurgeryError(
            "no attention was seen in this model, so its features and heads cannot be told apart; load it with"
            " attn_implementation='sdpa' or 'eager'"
        )
    if not axes.free and hidden is not None and heads is None and hidden % head == 0:
        heads = hidden // head
    wide, many = hidden or sizes.hidden, heads or sizes.heads
    if not axes.free and wide != many * head:
        near = max(1, wide // head)
        raise SurgeryError(
            f"hidden {wide} and heads {many} do not divide: the heads of this model fill its hidden width, and those of"
            f" the teacher have {head} features, which they keep; write hidden = {near * head}, heads = {near}"
        )
    if many % sizes.shared:
        raise SurgeryError(
            f"heads {many} do not divide into groups: {sizes.shared} heads of this model share one key and value; write"
            f" a multiple of {sizes.shared}"
        )
    return Sizes(wide, many, many // sizes.shared, ffn or sizes.ffn)


def lasting(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that a checkpoint holds, by name; the same object under each of its names."""
    state = model.state_dict()
    return {name: tensor for name, tensor in tensors(model).items() if name in state}


def kept(model: nn.Module, axes: Axes, target: Sizes, by: str, batches: list[Any] | None) -> dict[Choice, Tensor]:
    """The units that stay, in their order, for each choice that loses any."""
    counts = {HIDDEN: target.hidden, HEADS: target.groups, FFN: target.ffn or 0}
    sizes = {key: size for key, size in axes.sizes().items() if counts[key[0]] != size}
    if by == "slice":
        return {key: torch.arange(counts[key[0]]) for key in sizes}
    if batches is None:
        raise SurgeryError("by = 'importance' measures on data: give batches")
    scores = importance(model, axes, {role for role, _ in sizes}, batches)
    return {
        key: scores[key].sort(descending=True, stable=True).indices[: counts[key[0]]].sort().values for key in sizes
    }


def cut(found: Mapping[str, Tensor], axes: Axes, units: Mapping[Choice, Tensor]) -> dict[str, Tensor]:
    """The tensors with only these units, in this order; one with several names stays one."""
    names: dict[int, str] = {}
    made: dict[str, Tensor] = {}
    places = [(a.tensor, a.dim, a.kept(units[a.role, a.group])) for a in axes.axes if (a.role, a.group) in units]
    for name, tensor in found.items():
        if id(tensor) in names:
            made[name] = made[names[id(tensor)]]
            continue
        names[id(tensor)] = name
        made[name] = tensor.detach()
        for _, dim, index in (place for place in places if place[0] == name):
            made[name] = made[name].index_select(dim, index.to(tensor.device))
    return made


def require_proven(model: nn.Module, config: Any, sample: Any) -> None:
    """Raise SurgeryError unless a model of this config computes the same with all its units in another order.

    A feature that is taken for a head's, or is missed in one tensor, would show: nothing else of the model can undo the
    exchange. So do numbers that are computed from a place in the hidden width, as sinusoids are.
    """
    with seeded(0):
        blanks = lasting(blank(model, config, "cpu"))
        noise = {id(tensor): noisy(tensor) for tensor in blanks.values()}
        found = {name: noise[id(tensor)] for name, tensor in blanks.items()}
        first = rebuilt(model, config, found).eval()
        axes = surveyed(first, partial(run, first, sample))
        units = {key: torch.randperm(size) for key, size in axes.sizes().items()}
        second = rebuilt(model, config, cut(found, axes, units)).eval()
    with torch.no_grad():
        ours, theirs = outputs(run(first, sample)), outputs(run(second, sample))
    order = units[HIDDEN, ""] if (HIDDEN, "") in units else torch.arange(0)
    for one, other in zip(ours, theirs, strict=True):
        turned = one[..., order] if one.shape[-1] == len(order) else one
        if not any(((one_ - other).abs().max() <= CLOSE * one.abs().max()) for one_ in (one, turned)):
            raise SurgeryError(
                f"{type(model).__name__} cannot be made narrower: with its features, heads and neurons in another order"
                " it computes something else, so some part of it does not only see them as a set"
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
