"""The law: whatever was edited and undone in whatever order, at the end the model is the one of the beginning."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from hookbrew import Surgery
from hookbrew.errors import SurgeryError
from tests.surgery.edits.conftest import MODELS, Around, facts, model, outputs


def other(path, old):
    """A module of another shape than most."""
    return nn.Linear(5, 3)


MAKERS = [
    ("swap", lambda path, old: copy.deepcopy(old)),
    ("swap", lambda path, old: nn.Identity()),
    ("swap", other),
    ("untie", other),
    ("wrap", Around),
    ("wrap", lambda old: nn.Sequential(nn.Dropout(), old)),
]
ACTIONS = st.one_of(
    st.tuples(st.just("make"), st.integers(0, 10_000), st.sampled_from(MAKERS), st.sampled_from([None, "a", "b"])),
    st.tuples(st.sampled_from(["insert", "remove", "freeze", "unfreeze", "reset"]), st.integers(0, 10_000)),
    st.tuples(st.just("undo"), st.integers(0, 10_000)),
)


def act(surgery, action):
    """One edit or undo, at a place that the number picks."""
    verb, number, *rest = action
    paths = [path for path, _ in surgery.model.named_modules(remove_duplicate=False) if path]
    elements = [path for path in paths if path.rpartition(".")[2].isdigit()] if verb in ("insert", "remove") else []
    path = (elements or paths)[number % len(elements or paths)]
    if verb == "undo":
        surgery.undo(number % (surgery.mark + 1))
    elif verb == "make":
        (kind, make), tag = rest
        if kind == "wrap":
            surgery.wrap(path, make, tag=tag)
        else:
            surgery.swap(path, make, tag=tag, untie=kind == "untie")
    elif verb == "insert":
        surgery.insert(path, nn.Linear(4, 4))
    else:
        getattr(surgery, verb)(path)


def trained(net):
    """An optimizer that remembers something of each parameter, in two groups."""
    parameters = [*net.parameters()]
    optimizer = torch.optim.Adam([{"params": parameters[::2]}, {"params": parameters[1::2], "lr": 0.1}], lr=0.0)
    for parameter in parameters:
        optimizer.state[parameter] = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(parameter)}
    return optimizer


def comes_home(name, actions):
    """Act, undo all, and compare; what is refused changes nothing."""
    net = model(name)
    optimizer = trained(net)
    before, said = facts(net, optimizer), outputs(name, net)
    surgery = Surgery(net, optimizer)
    for action in actions:
        here = facts(net, optimizer)
        try:
            act(surgery, action)
        except SurgeryError:
            assert facts(net, optimizer) == here, f"{action} was refused, and has changed something"
    surgery.undo()
    assert facts(net, optimizer) == before
    assert torch.equal(outputs(name, net), said)


LOOSE = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=13, **LOOSE)
@given(actions=st.lists(ACTIONS, max_size=8))
def test_edits_and_undos_come_home(name, actions):
    comes_home(name, actions)


@pytest.mark.slow
@settings(max_examples=1000, **LOOSE)
@given(actions=st.lists(ACTIONS, max_size=16))
def test_a_thousand_sequences_come_home(actions):
    comes_home("net", actions)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if name != "net"])
@settings(max_examples=200, **LOOSE)
@given(actions=st.lists(ACTIONS, max_size=16))
def test_two_hundred_sequences_on_each_transformer_come_home(name, actions):
    comes_home(name, actions)
