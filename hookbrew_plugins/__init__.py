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
    register("at", "hookbrew_plugins.losses.spatial:AT")
    register("attention_ce", "hookbrew_plugins.losses.attention:AttentionCE")
    register("attention_ce_mean", "hookbrew_plugins.losses.attention:AttentionCEMean")
    register("attention_kl", "hookbrew_plugins.losses.attention:AttentionKL")
    register("attention_mse", "hookbrew_plugins.losses.attention:AttentionMSE")
    register("attention_mse_sum", "hookbrew_plugins.losses.attention:AttentionMSESum")
    register("bce", "hookbrew_plugins.losses.multilabel:BCE")
    register("ce", "hookbrew_plugins.losses.labels:CE")
    register("cka", "hookbrew_plugins.losses.kernels:CKA")
    register("cos", "hookbrew_plugins.losses.hidden:Cos")
    register("crd", "hookbrew_plugins.losses.contrast:CRD")
    register("dist", "hookbrew_plugins.losses.correlation:Dist")
    register("dkd", "hookbrew_plugins.losses.decoupled:DKD")
    register("fsp", "hookbrew_plugins.losses.flow:FSP")
    register("gram", "hookbrew_plugins.losses.flow:FSP")
    register("hidden_mse", "hookbrew_plugins.losses.hidden:HiddenMSE")
    register("jsd", "hookbrew_plugins.losses.divergences:JSD")
    register("kd_bce", "hookbrew_plugins.losses.multilabel:KDBCE")
    register("kd_ce", "hookbrew_plugins.losses.logits:KDCE")
    register("kd_mse", "hookbrew_plugins.losses.logits:KDMSE")
    register("kl", "hookbrew_plugins.losses.divergences:KL")
    register("mmd", "hookbrew_plugins.losses.flow:NST")
    register("nkd", "hookbrew_plugins.losses.decoupled:NKD")
    register("nst", "hookbrew_plugins.losses.flow:NST")
    register("pkd", "hookbrew_plugins.losses.hidden:PKD")
    register("pkt", "hookbrew_plugins.losses.samples:PKT")
    register("relation", "hookbrew_plugins.losses.relations:Relation")
    register("rkd", "hookbrew_plugins.losses.samples:RKD")
    register("rkl", "hookbrew_plugins.losses.divergences:RKL")
    register("simkd", "hookbrew_plugins.losses.simkd:SimKD")
    register("skl", "hookbrew_plugins.losses.divergences:SKL")
    register("sp", "hookbrew_plugins.losses.samples:SP")
    register("srkl", "hookbrew_plugins.losses.divergences:SRKL")
    register("topk_tail", "hookbrew_plugins.losses.topk:TopKTail")
    register("tvd", "hookbrew_plugins.losses.divergences:TVD")
    register("value_relation", "hookbrew_plugins.losses.relations:ValueRelation")
    register("vid", "hookbrew_plugins.losses.variational:VID")


@hookimpl
def hookbrew_register_schedules(register: Register) -> None:
    """Numbers over training progress."""
    register("constant", "hookbrew_plugins.schedules:Constant")
    register("cosine", "hookbrew_plugins.schedules:Cosine")
    register("linear", "hookbrew_plugins.schedules:Linear")
    register("linear_decay", "hookbrew_plugins.schedules:LinearDecay")
    register("linear_growth", "hookbrew_plugins.schedules:LinearGrowth")
    register("piecewise", "hookbrew_plugins.schedules:Piecewise")
    register("step", "hookbrew_plugins.schedules:Step")
    register("warmup", "hookbrew_plugins.schedules:Warmup")


@hookimpl
def hookbrew_register_projections(register: Register) -> None:
    """Maps from the student's width to the teacher's."""
    register("linear", "hookbrew_plugins.projections:Linear")
    register("relu", "hookbrew_plugins.projections:Relu")
    register("tanh", "hookbrew_plugins.projections:Tanh")


@hookimpl
def hookbrew_register_augments(register: Register) -> None:
    """Changes of a training batch."""
    register("cutmix", "hookbrew_plugins.augments:CutMix")
    register("deleting", "hookbrew_plugins.augments:Deleting")
    register("long_disorder", "hookbrew_plugins.augments:LongDisorder")
    register("masking", "hookbrew_plugins.augments:Masking")
    register("mixup", "hookbrew_plugins.augments:Mixup")
    register("n_gram_sampling", "hookbrew_plugins.augments:NGramSampling")
    register("short_disorder", "hookbrew_plugins.augments:ShortDisorder")


@hookimpl
def hookbrew_register_callbacks(register: Register) -> None:
    """Observers of a run, and what moves with it beside the training."""
    register("best", "hookbrew_plugins.callbacks.best:Best")
    register("checkpoint", "hookbrew_plugins.callbacks.checkpoint:Checkpoint")
    register("early_stop", "hookbrew_plugins.callbacks.early_stop:EarlyStop")
    register("ema", "hookbrew_plugins.callbacks.ema:EMA")
    register("evaluate", "hookbrew_plugins.callbacks.evaluate:Evaluate")
    register("freeze", "hookbrew_plugins.callbacks.freeze:Freeze")
    register("layerwise", "hookbrew_plugins.callbacks.layerwise:Layerwise")
    register("maps", "hookbrew_plugins.callbacks.maps:Maps")
    register("metrics", "hookbrew_plugins.callbacks.metrics:Metrics")
    register("progress", "hookbrew_plugins.callbacks.progress:Progress")
    register("tensorboard", "hookbrew_plugins.callbacks.tensorboard:Tensorboard")
    register("theseus", "hookbrew_plugins.callbacks.theseus:Theseus")
    register("weights", "hookbrew_plugins.callbacks.weights:Weights")


@hookimpl
def hookbrew_register_edits(register: Register) -> None:
    """Changes of a model when it is built."""
    register("freeze", "hookbrew_plugins.edits:Freeze")
    register("insert", "hookbrew_plugins.edits:Insert")
    register("lora", "hookbrew_plugins.edits.lora:Lora")
    register("remove", "hookbrew_plugins.edits:Remove")
    register("reset", "hookbrew_plugins.edits:Reset")
    register("swap", "hookbrew_plugins.edits:Swap")
    register("unfreeze", "hookbrew_plugins.edits:Unfreeze")
    register("wrap", "hookbrew_plugins.edits:Wrap")
