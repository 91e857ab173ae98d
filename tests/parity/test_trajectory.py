"""One whole run of TextBrewer against the same run here: the losses of all steps, and the weights at the end."""

import copy
import math

import attrs
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import hookbrew as hb

STEPS = 20
SIZES = {
    "vocab_size": 50,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "num_labels": 3,
    "attn_implementation": "eager",
}
CLIPPED = 1.0
HIDDEN = [(0, 0), (4, 2)]
"""Layers that are matched, of the teacher and of the student; 0 is the embedding."""
PROJECTED = ("linear", 32, 64)
KINDS = [
    {"dtype": torch.float64},
    {"dtype": torch.float32},
    {"dtype": torch.float64, "dropout": 0.1},
    {"dtype": torch.float64, "own": {"lr": 5e-3, "weight_decay": 0.3}},
]


def bert(seed, depth, width, dropout, dtype):
    torch.manual_seed(seed)
    config = BertConfig(
        num_hidden_layers=depth,
        hidden_size=width,
        intermediate_size=2 * width,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=0.0,
        **SIZES,
    )
    return BertForSequenceClassification(config).to(dtype)


def models(dtype=torch.float64, dropout=0.0):
    return bert(1, 4, 64, dropout, dtype), bert(2, 2, 32, dropout, dtype)


def batches(steps=STEPS):
    """Padded batches of 4, the padding of each uneven."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for _ in range(steps):
        lengths = torch.randint(3, 11, (4,), generator=generator)
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        ids = torch.randint(1, 50, mask.shape, generator=generator) * mask
        labels = torch.randint(0, 3, (4,), generator=generator)
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def adaptor(batch, outputs):
    return {
        "logits": outputs.logits,
        "hidden": outputs.hidden_states,
        "attention": outputs.attentions,
        "inputs_mask": batch["attention_mask"],
        "losses": outputs.loss,
        "labels": batch["labels"],
    }


@attrs.frozen
class Run:
    """What a run left: the loss of each step, the student, its projections, and the lengths of their gradients."""

    losses: list[float]
    student: nn.Module
    projections: list[nn.Module]
    pulls: list[tuple[float, float]]
    """Of the student and of the projections, as the optimizer got them, by step."""


def optimizer_of(student, lengths):
    """AdamW, which notes how long the gradients are that it is given."""
    made = torch.optim.AdamW(student.parameters(), lr=1e-3)
    mine = {id(p) for p in student.parameters()}

    def note(optimizer, *_):
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        sides = [[p.grad for p in trained if (id(p) in mine) == student] for student in (True, False)]
        lengths.append(tuple(nn.utils.get_total_norm(side).item() for side in sides))

    made.register_step_pre_hook(note)
    return made


def matches(own):
    """Two projected hidden states and an attention; own: options of the optimizer for the projections."""
    layers = [
        {"layer_T": t, "layer_S": s, "feature": "hidden", "loss": "hidden_mse", "weight": 1, "proj": list(PROJECTED)}
        for t, s in HIDDEN
    ]
    for layer in layers:
        layer["proj"].append(dict(own))
    return [*layers, {"layer_T": 3, "layer_S": 1, "feature": "attention", "loss": "attention_mse", "weight": 1}]


@pytest.fixture
def brew(brewed):
    """brew(clip=..., own=...): the run of TextBrewer, and what its projections were at the start."""

    def run(clip=-1.0, own=(), config=None, **kind):
        teacher, student = models(**kind)
        config = config or {"intermediate_matches": matches(own)}
        distiller, scalars = brewed(teacher, student, adaptor, temperature=8, hard_label_weight=0.5, **config)
        projections = [p.to(student.dtype) for p in distiller.projs if p is not None]
        starts, pulls = copy.deepcopy(projections), []
        torch.manual_seed(4)
        with distiller:
            distiller.train(
                optimizer_of(student, pulls),
                batches(),
                num_steps=STEPS,
                max_grad_norm=clip,
                output_hidden_states=True,
                output_attentions=True,
            )
        return Run(scalars["total_loss"], student, projections, pulls), starts

    return run


class Watch:
    """Keeps the losses, and may clip the student alone, as TextBrewer does."""

    def __init__(self, clip):
        self._clip, self._losses = clip, []

    def loss_end(self, state):
        self._losses.append(state.loss.item())

    def grads_ready(self, state):
        if self._clip > 0:
            torch.nn.utils.clip_grad_norm_(state.student.parameters(), self._clip)


def ours(starts, *, losses=None, clip=-1.0, clip_grad_norm=None, own=(), **kind):
    """The same run here. clip is for the student alone, clip_grad_norm for all that is trained."""
    teacher, student = models(**kind)
    losses = [*(losses or named(starts, own)), hb.loss("ce", weight=0.5)]
    distillation, watch, pulls = hb.Distillation(teacher, student, losses), Watch(clip), []
    torch.manual_seed(4)
    distillation.fit(
        batches(),
        steps=STEPS,
        optimizer=optimizer_of(student, pulls),
        clip_grad_norm=clip_grad_norm,
        callbacks=[watch],
    )
    return Run(watch._losses, student, list(distillation.objective.extras.values()), pulls)


def named(starts, own):
    """The losses of `matches`, and between the logits."""
    table = {"optimizer": dict(own)} if own else {}
    layers = [
        hb.loss("hidden_mse", student=f"hidden[{s}]", teacher=f"hidden[{t}]", projection=begun(start), **table)
        for (t, s), start in zip(HIDDEN, starts, strict=True)
    ]
    attention = hb.loss("attention_mse", student="attention[1]", teacher="attention[3]")
    return [hb.loss("kd_ce", temperature=8, t_squared=False), *layers, attention]


def begun(start):
    """A projection that begins with given weights."""
    return lambda student, teacher: copy.deepcopy(start)


def apart(these, those):
    """The largest difference between the weights of two modules."""
    ours, theirs = these.state_dict(), those.state_dict()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours if ours[name].is_floating_point())


@pytest.mark.parametrize("clip", [-1.0, CLIPPED])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_weights_of_20_steps(brew, kind, clip):
    theirs, starts = brew(clip=clip, **kind)
    mine = ours(starts, clip=clip, **kind)
    assert len(mine.losses) == STEPS
    assert mine.losses == pytest.approx(theirs.losses, abs=1e-6)
    assert theirs.losses[0] - theirs.losses[-1] > 0.5
    assert apart(mine.student, theirs.student) <= 1e-6
    assert max(map(apart, mine.projections, theirs.projections)) <= 1e-6


def test_other_losses_and_options(brew):
    """A loss on shifted logits with a temperature for each row, under a schedule; and four more between layers."""
    hidden = {"feature": "hidden", "proj": list(PROJECTED)}
    config = {
        "kd_loss_type": "mse",
        "temperature_scheduler": ["flsw", 2, 1],
        "kd_loss_weight_scheduler": "linear_decay",
        "probability_shift": True,
        "intermediate_matches": [
            {"layer_T": 4, "layer_S": 2, "loss": "cos", "weight": 2, **hidden},
            {"layer_T": 2, "layer_S": 1, "loss": "pkd", "weight": 0.5, **hidden},
            {"layer_T": [0, 4], "layer_S": [0, 2], "loss": "fsp", "weight": 10, **hidden},
            {"layer_T": 1, "layer_S": 0, "loss": "attention_mse_sum", "weight": 1, "feature": "attention"},
        ],
    }
    theirs, starts = brew(clip=CLIPPED, config=copy.deepcopy(config))
    cos, pkd, fsp = map(begun, starts)
    logits = {"temperature": 8, "t_squared": False, "dynamic": "flsw", "beta": 2, "gamma": 1, "probability_shift": True}
    losses = [
        hb.loss("kd_mse", weight={"type": "linear_decay", "base": 1.0}, **logits),
        hb.loss("cos", student="hidden[2]", teacher="hidden[4]", projection=cos, weight=2),
        hb.loss("pkd", student="hidden[1]", teacher="hidden[2]", projection=pkd, weight=0.5),
        hb.loss(
            "fsp", student=["hidden[0]", "hidden[2]"], teacher=["hidden[0]", "hidden[4]"], projection=fsp, weight=10
        ),
        hb.loss("attention_mse_sum", student="attention[0]", teacher="attention[1]"),
    ]
    mine = ours(starts, losses=losses, clip=CLIPPED)
    assert mine.losses == pytest.approx(theirs.losses, abs=1e-6)
    assert theirs.losses[0] - theirs.losses[-1] > 0.5
    assert apart(mine.student, theirs.student) <= 1e-6
    assert max(map(apart, mine.projections, theirs.projections)) <= 1e-6


def test_projections_are_clipped_with_the_student(brew):
    """TextBrewer clips the student alone, to 1; the gradients of its projections stay as long as they are."""
    theirs, starts = brew(clip=CLIPPED)
    mine = ours(starts, clip_grad_norm=CLIPPED)
    assert theirs.pulls[0] == pytest.approx((1.0, 1.0570), abs=1e-4)
    assert mine.pulls[0] == pytest.approx((0.6996, 0.7146), abs=1e-4)
    assert max(math.hypot(*pull) for pull in mine.pulls) <= 1.0 + 1e-6
    gaps = [abs(a - b) for a, b in zip(mine.losses, theirs.losses, strict=True)]
    assert gaps[0] <= 1e-6
    assert gaps[-1] == pytest.approx(0.0082, abs=1e-4)
    assert apart(mine.student, theirs.student) == pytest.approx(0.0027, abs=1e-4)
