"""The losses of the standard pack: pure functions on tensors, each beside the options class that names it."""

from hookbrew_plugins.losses.hidden import cos, hidden_mse
from hookbrew_plugins.losses.labels import ce
from hookbrew_plugins.losses.logits import kd_ce, kd_mse

__all__ = ["ce", "cos", "hidden_mse", "kd_ce", "kd_mse"]
