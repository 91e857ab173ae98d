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
from hookbrew_plugins.schedules.steps import Piecewise, Step, Warmup, held, piecewise, stairs, step, warmup

__all__ = [
    "Constant",
    "Cosine",
    "Linear",
    "LinearDecay",
    "LinearGrowth",
    "Piecewise",
    "Step",
    "Warmup",
    "constant",
    "cosine",
    "held",
    "line",
    "linear",
    "piecewise",
    "stairs",
    "step",
    "warmup",
]
