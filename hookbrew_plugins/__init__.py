"""The standard pack: a plugin like any other, found through our own entry point `standard`.

Names only: the class that a name stands for is imported when a configuration, `plugins show` or a test names it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hookbrew.plugin import hookimpl

if TYPE_CHECKING:
    from hookbrew.plugin import Register


@hookimpl
def hookbrew_register_losses(register: Register) -> None:
    """What the student is pulled towards."""
    register("ce", "hookbrew_plugins.losses.labels:CE")
    register("cos", "hookbrew_plugins.losses.hidden:Cos")
    register("hidden_mse", "hookbrew_plugins.losses.hidden:HiddenMSE")
    register("kd_ce", "hookbrew_plugins.losses.logits:KDCE")
    register("kd_mse", "hookbrew_plugins.losses.logits:KDMSE")


@hookimpl
def hookbrew_register_schedules(register: Register) -> None:
    """Numbers over training progress."""
    register("constant", "hookbrew_plugins.schedules:Constant")
    register("cosine", "hookbrew_plugins.schedules:Cosine")
    register("linear", "hookbrew_plugins.schedules:Linear")
    register("linear_decay", "hookbrew_plugins.schedules:LinearDecay")
    register("linear_growth", "hookbrew_plugins.schedules:LinearGrowth")


@hookimpl
def hookbrew_register_projections(register: Register) -> None:
    """Maps from the student's width to the teacher's."""
    register("linear", "hookbrew_plugins.projections:Linear")
    register("relu", "hookbrew_plugins.projections:Relu")
    register("tanh", "hookbrew_plugins.projections:Tanh")


@hookimpl
def hookbrew_register_augments(register: Register) -> None:
    """Changes of a training batch."""
    register("masking", "hookbrew_plugins.augments:Masking")


@hookimpl
def hookbrew_register_callbacks(register: Register) -> None:
    """Observers of a run."""
    register("checkpoint", "hookbrew_plugins.callbacks.checkpoint:Checkpoint")
    register("evaluate", "hookbrew_plugins.callbacks.evaluate:Evaluate")
    register("metrics", "hookbrew_plugins.callbacks.metrics:Metrics")
    register("progress", "hookbrew_plugins.callbacks.progress:Progress")
    register("tensorboard", "hookbrew_plugins.callbacks.tensorboard:Tensorboard")
    register("weights", "hookbrew_plugins.callbacks.weights:Weights")
