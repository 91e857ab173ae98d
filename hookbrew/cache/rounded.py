"""Numbers in a byte each, with one scale for each row of features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from hookbrew.cache.kinds import Kind, Part, stored
from hookbrew.errors import CacheError

LARGEST = 127
SCALE = " scale"
"""What the name of a part ends with that holds the scales of another."""


@attrs.frozen
class Rounded:
    """What another kind keeps in fp32, (..., D), as round(x / s), s = max |x| / 127 over the last dimension.

    It is off by at most s / 2, 1/254 of the largest number of its row.
    """

    kind: Kind

    @property
    def parts(self) -> tuple[Part, ...]:
        """Each part of the other kind in bytes, and its scales: of an attention, (H, L, S), one for each query."""
        pairs = (
            (attrs.evolve(part, dtype="int8"), Part(part.name + SCALE, "fp32", part.tokens, part.axes[:1]))
            for part in self.kind.parts
        )
        return tuple(part for pair in pairs for part in pair)

    def facts(self) -> dict[str, Any]:
        """Those of the other kind, with these parts."""
        inner = self.kind.facts()
        kind, options = inner["kind"], {k: v for k, v in inner.items() if k not in ("kind", "parts")}
        return stored(kind, self.parts, **options)

    def encode(self, outputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Bytes and scales; raises CacheError for what has no row of features, or is infinite."""
        found = []
        for part, tensor in zip(self.kind.parts, self.kind.encode(outputs), strict=True):
            if tensor.dim() < 2 + part.tokens:
                raise CacheError(f"{part.name!r} of shape {tuple(tensor.shape)} has no features to round; write fp16")
            if bool(tensor.isinf().any()):
                raise CacheError(f"{part.name!r} holds infinite numbers, which int8 has none for; write fp16")
            scale = tensor.abs().amax(-1) / LARGEST
            found += [(tensor / scale.clamp(min=torch.finfo(torch.float32).tiny)[..., None]).round().char(), scale]
        return found

    def decode(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs, as far as they were kept."""
        names = [part.name for part in self.kind.parts]
        return self.kind.decode({name: parts[name].float() * parts[name + SCALE][..., None] for name in names})
