"""Whatever the standard pack registers passes the kit of its kind, from the moment it has a name."""

from __future__ import annotations

import subprocess
import sys

import pytest

import hookbrew_plugins
from hookbrew import testing
from hookbrew.config import Factory
from hookbrew.options import describe
from hookbrew.plugin import KINDS, catalogue

PACK = catalogue(discover=False, plugins=[hookbrew_plugins])
NEEDED = {
    "crd": {"samples": 12},
    "deleting": {"pad": 0},
    "freeze": {"modules": ["0"]},
    "layerwise": {"student": "{0,3}", "teacher": "{0,2}"},
    "masking": {"mask_token": 29},
    "n_gram_sampling": {"pad": 0},
    "theseus": {"student": "{0,3}", "teacher": "{0,2}"},
}
"""Values for the options that have no default."""

EDITS = {
    "freeze": {"path": "layers[1]"},
    "insert": {
        "path": "body[1]",
        "module": Factory(factory="torch.nn:Linear", arguments={"in_features": 8, "out_features": 8}),
    },
    "lora": {"path": "layers[*].{query,value}"},
    "remove": {"path": "layers[1]"},
    "reset": {"path": "layers[0:2]"},
    "swap": {"path": "layers[*].act", "module": Factory(factory="torch.nn:ReLU")},
    "unfreeze": {"path": "layers[0]"},
    "wrap": {"path": "layers[*].query", "module": Factory(factory="torch.nn:Sequential")},
}
"""The same for edits, on the model of their kit."""


def needed(kind, name):
    """Values for the options of a component that have no default."""
    return EDITS[name] if kind == "edits" else NEEDED.get(name, {})


FITTING = {
    "maps": {"student": "{0,3}", "teacher": ":out", "student_attention": "", "teacher_attention": ""},
    "theseus": {"freeze": False},
}
"""Options for the models of a kit, which have no stack of blocks."""

COPY = Factory(factory="copy:deepcopy")
TEXTBREWER = {"temperature_scale"}
"""What a loss loses without its T^2: parity is the only reason for that switch."""
SMOOTHED = {"impossible_class"}
"""Smoothing puts a share of each label on every class that is not -inf, on one at -10,000 too."""
STANDARD = {"impossible_class"}
"""Mean and deviation of a row know every class that is not -inf."""
CWSM = {"gradcheck", "micro_batches"}
"""The temperature of a row is a constant to the gradient, and around the mean of the batch."""
FLSW = CWSM | {"impossible_class"}
"""The similarity of two rows knows every class."""
SHIFTED = {"zero_at_agreement", "flat_at_agreement"}
"""A teacher that puts the label first is not the student any more."""

VARIANTS = [
    ("losses", "ce", {"label_smoothing": 0.1}, SMOOTHED),
    ("losses", "cos", {"epsilon": 0.01}, set()),
    ("losses", "at", {"power": 1.0}, set()),
    ("losses", "at", {"power": 4.0, "epsilon": 0.001}, set()),
    ("losses", "cka", {"epsilon": 0.001}, set()),
    ("losses", "pkd", {"epsilon": 0.01}, set()),
    ("losses", "pkt", {"epsilon": 0.001}, set()),
    ("losses", "crd", {"dimension": 3, "negatives": 5, "temperature": 1.0, "momentum": 0.0, "seed": 7}, set()),
    ("losses", "relation", {"heads": 1}, set()),
    ("losses", "relation", {"heads": 6}, set()),
    ("losses", "rkd", {"angle": 0.0}, set()),
    ("losses", "rkd", {"distance": 0.0}, set()),
    ("losses", "simkd", {"factor": 1, "rectify": True}, set()),
    ("losses", "vid", {"features": 5}, set()),
    ("losses", "vid", {"variance": 0.1, "epsilon": 0.01}, set()),
    ("losses", "kd_ce", {"temperature": 1.0}, set()),
    ("losses", "kd_ce", {"temperature": 20.0}, set()),
    ("losses", "kd_ce", {"t_squared": False}, TEXTBREWER),
    ("losses", "kd_mse", {"temperature": 8.0}, set()),
    ("losses", "kd_mse", {"temperature": 2.0, "t_squared": False}, TEXTBREWER),
    ("losses", "dist", {"temperature": 4.0, "t_squared": False}, set()),
    ("losses", "dist", {"standardize": True}, set()),
    ("losses", "dkd", {"temperature": 1.0, "alpha": 2.0, "beta": 0.5}, set()),
    ("losses", "dkd", {"standardize": True}, STANDARD),
    ("losses", "dkd", {"t_squared": False}, TEXTBREWER),
    ("losses", "jsd", {"beta": 0.0}, set()),
    ("losses", "jsd", {"beta": 1.0}, set()),
    ("losses", "jsd", {"beta": 0.1, "standardize": True}, STANDARD),
    ("losses", "kd_bce", {"temperature": 4.0}, set()),
    ("losses", "kd_ce", {"standardize": True}, STANDARD),
    ("losses", "kd_ce", {"dynamic": "flsw"}, FLSW),
    ("losses", "kd_ce", {"dynamic": "cwsm"}, CWSM),
    ("losses", "kd_ce", {"probability_shift": True}, SHIFTED - {"zero_at_agreement"}),
    ("losses", "kd_mse", {"dynamic": "flsw", "t_squared": False}, CWSM | TEXTBREWER),
    ("losses", "kd_mse", {"probability_shift": True, "standardize": True}, SHIFTED),
    ("losses", "kl", {"temperature": 1.0}, set()),
    ("losses", "kl", {"t_squared": False}, TEXTBREWER),
    ("losses", "kl", {"standardize": True}, STANDARD),
    ("losses", "kl", {"dynamic": "flsw", "gamma": 1.5}, FLSW),
    ("losses", "kl", {"dynamic": "cwsm", "beta": 0.5}, CWSM),
    ("losses", "kl", {"probability_shift": True}, SHIFTED),
    ("losses", "nkd", {"temperature": 4.0}, set()),
    ("losses", "nkd", {"standardize": True}, STANDARD),
    ("losses", "rkl", {"temperature": 4.0, "standardize": True}, STANDARD),
    ("losses", "skl", {"skew": 0.0}, set()),
    ("losses", "skl", {"skew": 0.5, "temperature": 4.0}, set()),
    ("losses", "srkl", {"skew": 0.0}, set()),
    ("losses", "srkl", {"skew": 0.5, "standardize": True}, STANDARD),
    ("losses", "topk_tail", {"k": 2, "temperature": 4.0}, set()),
    ("losses", "topk_tail", {"standardize": True}, STANDARD),
    ("losses", "tvd", {"temperature": 4.0}, set()),
    ("losses", "tvd", {"standardize": True}, STANDARD),
    ("schedules", "constant", {"value": 0.3}, set()),
    ("schedules", "linear_decay", {"start": 0.9, "end": 0.1}, set()),
    ("schedules", "linear_growth", {"start": 0.1, "end": 0.9}, set()),
    ("schedules", "linear", {"warmup": 0.1}, set()),
    ("schedules", "linear", {"warmup": 1.0, "end": 0.5}, set()),
    ("schedules", "cosine", {"warmup": 0.1}, set()),
    ("schedules", "cosine", {"warmup": 1.0, "end": 0.5}, set()),
    ("schedules", "piecewise", {"points": [(0.2, -1.0), (0.7, 3.0)], "interpolate": "constant"}, set()),
    ("schedules", "step", {"factor": 2.0, "every": 0.1}, set()),
    ("schedules", "step", {"milestones": [1.0]}, set()),
    ("schedules", "warmup", {"share": 1.0, "start": 0.5}, set()),
    ("schedules", "warmup", {"share": 0.0}, set()),
    ("augments", "masking", {"p": 1.0}, set()),
    ("augments", "masking", {"p": 0.5, "keep": (1, 2), "mask": ""}, {"padding_stays"}),
    ("augments", "cutmix", {"alpha": 0.3, "classes": 5}, set()),
    ("augments", "mixup", {"alpha": 2.0, "classes": 5}, set()),
    ("augments", "deleting", {"p": 1.0}, set()),
    ("augments", "deleting", {"p": 0.5, "keep": (1, 2), "mask": "", "follow": {"attention_mask": 0}}, set()),
    ("augments", "long_disorder", {"p": 0.9, "length": 4.0}, set()),
    ("augments", "n_gram_sampling", {"l_ng": (2,), "p_ng": (1.0,)}, set()),
    ("augments", "short_disorder", {"p": (0.0, 0.3, 0.3, 0.2, 0.2)}, set()),
    ("callbacks", "best", {"goal": "lowest", "folder": "kept/lowest"}, set()),
    ("callbacks", "checkpoint", {"every": 2, "keep_best": 1, "metric": "accuracy", "goal": "lowest"}, set()),
    ("callbacks", "early_stop", {"patience": 1, "min_delta": 0.1, "metric": "accuracy"}, set()),
    ("callbacks", "ema", {"decay": 0.0, "warmup": False, "evaluate": False}, set()),
    ("callbacks", "maps", {**FITTING["maps"], "every": 1, "mask": "", "folder": "tb/seen"}, set()),
    ("edits", "swap", {"path": "{embed,head}", "module": COPY, "old": True}, set()),
    ("edits", "swap", {"path": "embed", "module": COPY, "old": True, "untie": True}, set()),
    ("edits", "freeze", {"path": "**.query"}, set()),
    ("callbacks", "freeze", {"modules": ["{0,1}"], "until": 4, "after": 0.2}, set()),
]
"""More options: kind, name, options, and exactly the properties that they give up."""


def entries():
    """Every kind with every name."""
    return [(kind, name) for kind in KINDS for name in PACK.names(kind)]


def kit(kind):
    """The kit for one kind."""
    return getattr(testing, f"check_{KINDS[kind]}")


@pytest.mark.parametrize(("kind", "name"), entries())
def test_defaults_pass(kind, name):
    kit(kind)(PACK.load(kind, name)(**needed(kind, name), **FITTING.get(name, {})))


@pytest.mark.parametrize(("kind", "name", "options", "lost"), VARIANTS)
def test_variants_pass(kind, name, options, lost):
    made = PACK.load(kind, name)(**{**needed(kind, name), **options})
    assert set(kit(kind).failures(made)) == lost


STOPPING = {"early_stop": {"patience": 1, "min_delta": 1.0}}
"""Options with which a callback does what it is exempt for."""


@pytest.mark.parametrize(("kind", "name"), [entry for entry in entries() if entry[0] in ("losses", "callbacks")])
def test_no_exemption_is_stale(kind, name):
    made = PACK.load(kind, name)(**{**needed(kind, name), **FITTING.get(name, {}), **STOPPING.get(name, {})})
    for check in kit(kind).checks(made):
        if check.exempt:
            with pytest.raises(AssertionError, match=f"fails {check.name}: "):
                check()


REFUSED = {"at": [(6, 5)], "crd": [(3, 4, 5)]}
"""Shapes that are no use to a loss: a pooled vector has no places, and tokens are not one vector a sample."""


@pytest.mark.parametrize("name", PACK.names("losses"))
def test_losses_take_every_shape_of_their_kind(name):
    """A shape check that refuses too much would empty the kit in silence."""
    from hookbrew.testing.trial import SHAPES, taken, trials

    made = PACK.load("losses", name)(**needed("losses", name))
    expected = [shape for shape in SHAPES[taken(made)] if shape not in REFUSED.get(name, [])]
    assert [trial.shape for trial in trials(made)] == expected


@pytest.mark.parametrize(("kind", "name"), entries())
def test_everything_is_documented_and_builds(kind, name):
    found = PACK.load(kind, name)
    assert found.__doc__
    assert callable(found.build)
    assert [option.name for option in describe(found) if not option.doc] == []
    assert {option.name for option in describe(found) if option.required} == set(needed(kind, name))


@pytest.mark.parametrize(
    "module", ["hookbrew_plugins", "hookbrew_plugins.schedules", "hookbrew_plugins.callbacks", "hookbrew.plugin"]
)
def test_names_import_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
