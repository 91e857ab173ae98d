"""The losses of the standard pack: pure functions on tensors, each beside the options class that names it.

`Reused` puts together what the `simkd` loss has trained.
"""

from hookbrew_plugins.losses.attention import (
    attention_ce,
    attention_ce_mean,
    attention_kl,
    attention_mse,
    attention_mse_sum,
)
from hookbrew_plugins.losses.correlation import dist
from hookbrew_plugins.losses.decoupled import dkd, nkd
from hookbrew_plugins.losses.divergences import jsd, kl, rkl, skl, srkl, tvd
from hookbrew_plugins.losses.flow import fsp, nst
from hookbrew_plugins.losses.hidden import cos, hidden_mse, pkd
from hookbrew_plugins.losses.kernels import cka
from hookbrew_plugins.losses.labels import ce
from hookbrew_plugins.losses.logits import kd_ce, kd_mse
from hookbrew_plugins.losses.multilabel import bce, kd_bce
from hookbrew_plugins.losses.relations import relation, value_relation
from hookbrew_plugins.losses.samples import pkt, rkd, sp
from hookbrew_plugins.losses.simkd import Reused
from hookbrew_plugins.losses.spatial import at
from hookbrew_plugins.losses.topk import topk_tail

__all__ = [
    "Reused",
    "at",
    "attention_ce",
    "attention_ce_mean",
    "attention_kl",
    "attention_mse",
    "attention_mse_sum",
    "bce",
    "ce",
    "cka",
    "cos",
    "dist",
    "dkd",
    "fsp",
    "hidden_mse",
    "jsd",
    "kd_bce",
    "kd_ce",
    "kd_mse",
    "kl",
    "nkd",
    "nst",
    "pkd",
    "pkt",
    "relation",
    "rkd",
    "rkl",
    "skl",
    "sp",
    "srkl",
    "topk_tail",
    "tvd",
    "value_relation",
]
