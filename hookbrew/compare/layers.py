"""How similar the layers of two models are, over rows that are gathered batch by batch. N rows, D features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from hookbrew.cka import alike, pooled, rows
from hookbrew.errors import ObjectiveError, SelectorError
from hookbrew.objective import Names
from hookbrew.taps import Taps

ROWS = 2048
"""So many tokens or samples are compared, drawn evenly from all batches."""
NUMBERS = 2**26
"""Or fewer, so that no model's layers hold more numbers than this: 256 MiB."""
TAP = "layers"


@attrs.frozen(kw_only=True)
class Similarity:
    """Linear CKA of every layer of a model with every layer of the first model."""

    paths: tuple[str, ...]
    first: tuple[str, ...]
    """The paths of the first model."""
    values: tuple[tuple[float, ...], ...]
    """(layers, layers of the first model), from 0 to 1; nan for a layer that does not vary."""
    over: str
    """What was compared: `2,048 tokens`."""

    @property
    def last(self) -> float:
        """That of the two last layers."""
        return self.values[-1][-1]


def layered(module: Any, selector: str, inputs: Mapping[str, Any]) -> list[str]:
    """The paths of the layers that a selector names, found by one forward; raises SelectorError."""
    taps = Taps(module, {TAP: selector})
    with taps:
        taps.run(**inputs)
        found = read(taps)
    paths = taps.paths[TAP]
    taps.clear()
    return paths if len(paths) == len(found) else [f"{paths[0]} {number}" for number in range(len(found))]


def read(taps: Taps) -> list[Tensor]:
    """The layers of the last forward; raises SelectorError for what is no tensor of samples."""
    found = taps[TAP]
    layers = found if isinstance(found, list) else [found]
    if any(layer.dim() < 2 for layer in layers):
        raise SelectorError(f"a layer is {tuple(layers[0].shape)}, and similarity is of (samples, ..., features)")
    return layers


@attrs.define
class Gathered:
    """The rows of one model and of the first, both at the same places."""

    batches: int
    """How many will come."""
    ours: list[list[Tensor]] = attrs.field(factory=list)
    theirs: list[list[Tensor]] = attrs.field(factory=list)
    kind: str = "samples"
    most: int = 0
    """Rows of one batch."""
    _draw: torch.Generator = attrs.field(factory=lambda: torch.Generator().manual_seed(0))

    def add(
        self,
        ours: Sequence[Tensor],
        theirs: Sequence[Tensor],
        masks: tuple[Tensor | None, Tensor | None],
        *,
        apart: bool,
    ) -> None:
        """Draw rows of a batch; apart: the models read other tokens, so that samples are compared, not tokens.

        Raises ObjectiveError for a mask that does not fit, and where samples differ.
        """
        given = zip((ours, theirs), masks, strict=True)
        ours, theirs = ([turned(layer, mask) for layer in side] for side, mask in given)
        if apart:
            sides = zip((ours, theirs), masks, strict=True)
            left, right = ([pooled(layer, mask) for layer in side] for side, mask in sides)
            kind = "samples"
        else:
            left, right, over = rows(ours, theirs, masks)
            kind = over.rpartition(" ")[2]
        if self.ours and kind != self.kind:
            raise ObjectiveError(f"layers are compared by {self.kind} in one batch and by {kind} in another")
        if not self.most:
            wide = max(sum(rows.shape[1] for rows in side) for side in (left, right))
            self.kind, self.most = kind, max(1, min(ROWS, NUMBERS // wide) // self.batches)
        there = len(left[0])
        drawn = torch.randperm(there, generator=self._draw)[: self.most].sort().values.to(left[0].device)
        self.ours.append([layer[drawn].float().cpu() for layer in left])
        self.theirs.append([layer[drawn].float().cpu() for layer in right])

    def similarity(self, paths: Sequence[str], first: Sequence[str]) -> Similarity:
        """What they come to."""
        ours, theirs = ([torch.cat(layer) for layer in zip(*side, strict=True)] for side in (self.ours, self.theirs))
        values = alike(ours, theirs)
        over = f"{len(ours[0]):,} {self.kind}"
        found = tuple(tuple(row) for row in values.tolist())
        return Similarity(paths=tuple(paths), first=tuple(first), values=found, over=over)


def turned(layer: Tensor, mask: Tensor | None) -> Tensor:
    """A layer with its tokens before its features, (B, L, D): those of a convolution are (B, D, L).

    Raises ObjectiveError for one whose tokens are not those of the mask.
    """
    if mask is None or layer.dim() != 3 or layer.shape[:2] == mask.shape:
        return layer
    if (layer.shape[0], layer.shape[2]) == mask.shape:
        return layer.transpose(1, 2)
    shapes = f"a layer is {tuple(layer.shape)}, and the mask of its tokens {tuple(mask.shape)}"
    raise ObjectiveError(f"{shapes}; name other layers")


def mask_of(own: Mapping[str, Any], names: Names) -> Tensor | None:
    """The mask of a batch's tokens, (B, L); None without one."""
    mask = own.get(names.mask)
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
