"""Parts of the student that stay as they are for some steps: which, for how long, and what it leaves behind."""

import pytest
import torch
from torch import nn

import hookbrew as hb
from hookbrew.errors import ConfigError, SelectorError
from hookbrew.loop import Dispatch, State
from hookbrew_plugins.callbacks.freeze import Freeze

STEPS = 10


class Net(nn.Module):
    """Three layers, the last of which shares its weight with the first; a bias that is never trained."""

    def __init__(self, width=3):
        super().__init__()
        self.body = nn.ModuleList([nn.Linear(3, width), nn.Linear(width, width), nn.Linear(width, 3)])
        self.head = nn.Linear(3, 3)
        if width == 3:
            self.head.weight = self.body[0].weight
        self.body[1].bias.requires_grad_(False)

    def forward(self, x):
        for layer in self.body:
            x = torch.tanh(layer(x))
        return self.head(x)


class Look:
    """Which parameters each step changes, the student's and the projections'."""

    def __init__(self):
        self.moved, self.trained, self.before = {}, {}, {}

    def step_start(self, state):
        self.before = {name: p.detach().clone() for name, p in named(state)}

    def eval_start(self, state):
        self.trained[state.step] = state.student.body[2].bias.requires_grad

    def optimizer_end(self, state):
        changed = (name for name, p in named(state) if not torch.equal(p, self.before[name]))
        self.moved[state.step] = set(changed)


def named(state):
    return [*state.student.named_parameters(), *((f"extras.{n}", p) for n, p in state.extras.named_parameters())]


def fit(*freezes, student=None, losses=None, **arguments):
    """Which parameters moved in each of ten steps under AdamW, which decays whatever has a gradient, zero or not."""
    torch.manual_seed(0)
    student, look = student or Net(), Look()
    data = [{"x": torch.randn(6, 3), "labels": torch.arange(6) % 3}]
    run = hb.Distillation(None if losses is None else Net(5), student, losses or [hb.loss("ce")])
    optimizer = torch.optim.AdamW(student.parameters(), 0.1, weight_decay=0.5)
    callbacks = [*freezes, look]
    run.fit(data, steps=STEPS, optimizer=optimizer, callbacks=callbacks, evaluate=data, evaluate_every=1, **arguments)
    frozen = still(look.moved, "body.2.bias")
    seen = [step for step, trained in look.trained.items() if not trained and step < STEPS]
    assert seen == [step for step in frozen if step + 1 in frozen], "nothing thaws between two steps that are frozen"
    return look.moved


def freeze(*modules, **options):
    return hb.callback("freeze", modules=[*modules], **options)


def still(moved, name):
    """The steps in which a parameter did not move."""
    return [step for step, names in moved.items() if name not in names]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"until": 3}, range(1, 4)),
        ({"until": 0.3}, range(1, 4)),
        ({"until": 1}, range(1, 2)),
        ({"until": 1.0}, range(1, 11)),
        ({"until": 0.01}, range(1, 2)),
        ({}, range(1, 11)),
        ({"after": 7}, range(8, 11)),
        ({"after": 0.7}, range(8, 11)),
        ({"after": 2, "until": 4}, range(3, 5)),
        ({"after": 0.2, "until": 4}, range(3, 5)),
        ({"until": 1000}, range(1, 11)),
    ],
)
def test_parameters_stay_for_so_long(options, steps):
    moved = fit(freeze("body[1]", "body[2]", **options))
    for name in ("body.1.weight", "body.2.weight", "body.2.bias"):
        assert still(moved, name) == [*steps]
    for name in ("body.0.weight", "body.0.bias", "head.bias"):
        assert still(moved, name) == []
    assert still(moved, "body.1.bias") == [*range(1, 11)], "it was never trained"


@pytest.mark.parametrize("fails", [False, True])
def test_all_is_trained_that_was_before(fails):
    class Fall:
        def step_end(self, state):
            if fails:
                raise RuntimeError("fell")

    student = Net()
    before = {name: p.requires_grad for name, p in student.named_parameters()}
    try:
        fit(freeze("body", until=8), Fall(), student=student)
    except RuntimeError:
        assert fails
    assert {name: p.requires_grad for name, p in student.named_parameters()} == before
    assert not before["body.1.bias"]


def test_projections_are_trained_on():
    losses = [hb.loss("hidden_mse", student="body[1]", teacher="body[1]", projection="linear"), hb.loss("kd_ce")]
    moved = fit(freeze("body", "head", until=5), losses=losses)
    (projection,) = {name for name in moved[1] if name.endswith("weight")}
    assert projection.startswith("extras.")
    assert still(moved, projection) == []
    assert still(moved, "head.bias") == [1, 2, 3, 4, 5]


def test_a_shared_parameter_is_frozen_everywhere():
    moved = fit(freeze("head", until=4))
    assert still(moved, "body.0.weight") == still(moved, "head.bias") == [1, 2, 3, 4]
    assert still(moved, "body.0.bias") == []


OVERLAPPING = [
    {"modules": ["body[1]"], "until": 3},
    {"modules": ["body[1:3]"], "until": 6},
    {"modules": ["body[1]"], "after": 8},
]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_several_agree_in_any_order(order):
    moved = fit(*(hb.callback("freeze", **OVERLAPPING[number]) for number in order))
    assert still(moved, "body.1.weight") == [1, 2, 3, 4, 5, 6, 9, 10]
    assert still(moved, "body.2.weight") == [1, 2, 3, 4, 5, 6]


def flags(order, start):
    """What is trained in the forward of each step, of a training that begins after `start` steps."""
    student, found = Net(), {}
    state = State(
        student=student,
        teacher=None,
        extras=nn.ModuleDict(),
        device=torch.device("cpu"),
        total_steps=STEPS,
        total_epochs=None,
        announce=print,
    )
    state.step = start
    dispatch = Dispatch([("freeze", Freeze(**OVERLAPPING[number]).build()) for number in order])
    dispatch.fire("run_start", state)
    for step in range(start + 1, STEPS + 1):
        state.step = step
        dispatch.fire("step_start", state)
        found[step] = [p.requires_grad for p in student.parameters()]
        dispatch.fire("step_end", state)
    dispatch.fire("close", state)
    assert [p.requires_grad for p in student.parameters()] == [p.requires_grad for p in Net().parameters()]
    return found


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_a_training_that_goes_on_in_the_middle_freezes_the_same(order):
    whole = flags(order, 0)
    assert len({tuple(row) for row in whole.values()}) == 3
    for start in range(1, STEPS):
        assert flags(order, start) == {step: row for step, row in whole.items() if step > start}


def told(*freezes, **arguments):
    with pytest.raises((ConfigError, SelectorError)) as caught:
        fit(*freezes, **arguments)
    return str(caught.value)


def test_what_freezes_nothing_or_all():
    assert told(freeze("bdy[1]")) == (
        "selector 'bdy[1]' matches no module of Net. Stopped at the model: no child 'bdy'; did you mean 'body'?"
    )
    assert told(freeze("body", "head")) == (
        "callback 'freeze': nothing would be trained; leave some module of the student out"
    )
    student = Net()
    student.body[1].requires_grad_(False)
    assert told(freeze("head", "body[1]"), student=student) == (
        "callback 'freeze': 'body[1]' has no parameter that is trained"
    )
    assert told(freeze("head", after=10)) == "callback 'freeze': no step of 10 comes after 10"
    assert told(freeze("head", after=0.5, until=5)) == "callback 'freeze': no step of 10 comes after 0.5 and until 5"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modules": []}, "modules: length must be >= 1: 0"),
        ({"until": 0}, "until: must be a number of steps, 1 or more: 0"),
        ({"until": 1.5}, "until: must be a share of the training above 0.0, up to 1.0: 1.5"),
        ({"after": 0.0}, "after: must be a share of the training above 0.0, up to 1.0: 0.0"),
        ({"after": True}, "after: expected an integer or a number, got true"),
    ],
)
def test_points_are_steps_or_shares(options, message):
    assert told(hb.callback("freeze", **{"modules": ["head"], **options})) == f"callback 'freeze': {message}"
