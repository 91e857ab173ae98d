"""What a comparison came to, as values and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import attrs

from hookbrew.compare.layers import Similarity
from hookbrew.compare.quality import Quality
from hookbrew.compare.speed import Speed

FORMAT = 1
"""Of the JSON; another number where a key has another meaning."""


@attrs.frozen(kw_only=True)
class Measured:
    """One model."""

    name: str
    kind: str
    """Its class."""
    parameters: int
    """Those that are shared are counted once."""
    weights: int
    """Bytes of parameters and buffers in memory."""
    disk: int
    """Bytes on disk: of the files that the weights were read from, else of a file with each tensor once."""
    filed: bool
    """Whether there were such files."""
    flops: int | None
    """Of one sample, a mean over those that were timed; None if torch cannot count them."""
    quality: Quality
    speeds: tuple[Speed, ...]
    similarity: Similarity | None
    """With the layers of the first model."""


@attrs.frozen(kw_only=True)
class Comparison:
    """The models in their order; the first is what the others are compared with."""

    models: tuple[Measured, ...]
    samples: int
    """Of the evaluation."""
    facts: Mapping[str, Any]
    """With what, where and how it was measured."""
    notes: tuple[str, ...] = ()
    """What could not be measured, and why."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """The batch sizes at which speed was measured."""
        return tuple(speed.size for speed in self.models[0].speeds)

    def as_data(self) -> dict[str, Any]:
        """Plain values for JSON: None for what is no finite number."""
        found: dict[str, Any] = plain({"comparison": FORMAT, **attrs.asdict(self)})
        return found

    def as_json(self) -> str:
        """The text of a file."""
        return json.dumps(self.as_data(), indent=1, allow_nan=False) + "\n"

    def __str__(self) -> str:
        from hookbrew.compare.table import text

        return text(self)


def plain(value: Any) -> Any:
    """A value of JSON's own kinds."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
