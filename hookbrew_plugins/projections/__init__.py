"""The projections of the standard pack."""

from hookbrew_plugins.projections.dense import Linear, Relu, Tanh, dense

__all__ = ["Linear", "Relu", "Tanh", "dense"]
