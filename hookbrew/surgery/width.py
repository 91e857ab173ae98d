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
from hookbrew.errors import SurgeryError
from hookbrew.surgery.axes import FFN, HEADS, HIDDEN, Axes, Choice, cut, lasting, surveyed
from hookbrew.surgery.importance import importance
from hookbrew.surgery.proof import require_proven, require_saved
from hookbrew.surgery.rebuild import rebuilt
from hookbrew.surgery.sample import run, single
from hookbrew.surgery.sizes import Sizes, configured, measured, resized

WAYS: Final = ("slice", "importance")


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
    require_saved(model, axes)
    require_proven(model, smaller, sample, axes)
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
