"""The schedules of the standard pack; importing them never imports torch."""

from hookbrew_plugins.schedules.ramps import (
    Constant,
    Cosine,
    Linear,
    LinearDecay,
    LinearGrowth,
    constant,
    cosine,
    line,
    linear,
)

__all__ = ["Constant", "Cosine", "Linear", "LinearDecay", "LinearGrowth", "constant", "cosine", "line", "linear"]
