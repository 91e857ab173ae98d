"""The tether changes no number: it is a part of the graph and nothing else."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from hookbrew.taps.tether import synced, tether

Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Output:
    loss: Any
    states: Any


@pytest.fixture
def reached():
    """reached(value): the tensors among those made by `reached.make()` that the value's backward visits."""

    def make():
        tensor = torch.ones(2, requires_grad=True)
        # What DDP waits for, and keeps alive: the node that would add to a parameter's gradient.
        nodes.append(tensor.view_as(tensor).grad_fn.next_functions[0][0])
        nodes[-1].register_hook(lambda *_: visited.append(tensor))
        return tensor

    def find(value):
        visited.clear()
        value.backward()
        return len(set(map(id, visited)))

    visited, nodes = [], []
    find.make = make
    return find


@pytest.mark.parametrize(
    "nest",
    [
        lambda a, b: a * b,
        lambda a, b: (a * 2, b * 2),
        lambda a, b: [a * 2, [b * 2]],
        lambda a, b: {"x": a * 2, "y": ({"z": b * 2},)},
        lambda a, b: OrderedDict(x=a * 2, y=b * 2),
        lambda a, b: Pair(a * 2, (b * 2,)),
        lambda a, b: Output(a * 2, [None, b * 2, torch.arange(3), torch.ones(2), "text", 3]),
        lambda a, b: ((a * 2).to(torch.bfloat16), (b * 2).to(torch.complex64)),
        lambda a, b: ((a * 2)[:1], (b * 2).view(2, 1).expand(2, 1000)),
    ],
)
def test_outputs_of_any_shape(reached, nest):
    a, b, c = (reached.make() for _ in range(3))
    loss = (c * 3).sum()
    assert reached(loss) == 1
    assert reached(tether((c * 3).sum(), nest(a, b))) == 3
    assert a.grad is None
    assert b.grad is None
    assert torch.equal(c.grad, torch.full((2,), 6.0))


def test_outputs_of_transformers(reached):
    outputs = pytest.importorskip("transformers.modeling_outputs")
    a, b = reached.make(), reached.make()
    output = outputs.SequenceClassifierOutput(logits=a * 2, hidden_states=(b * 2, b * 3))
    assert reached(tether(torch.zeros(()), output)) == 2


@pytest.mark.parametrize(
    "outputs", [None, torch.ones(2), (), {}, [torch.arange(2), "text"], {"logits": torch.ones(2), "n": 3}, object()]
)
def test_nothing_to_tie(outputs):
    value = torch.ones((), requires_grad=True) * 2
    assert tether(value, outputs) is value


def test_the_value_is_the_same_and_may_change_in_place():
    w = torch.ones(2, requires_grad=True)
    loss = tether((w * 3).sum(), w * 2)
    assert loss.item() == 6
    loss /= 2
    loss.backward()
    assert w.grad.tolist() == [1.5, 1.5]


def test_a_value_of_any_shape_and_an_outer_loss():
    w = torch.randn(3, 4, requires_grad=True)
    value = tether(w.t() * 3, {"logits": w.exp()})
    assert torch.equal(value, w.t() * 3)
    assert value.stride() == w.t().stride()
    (value * 2).sum().backward()
    assert torch.equal(w.grad, torch.full((3, 4), 6.0))


@pytest.mark.parametrize("reentrant", [True, False])
def test_through_gradient_checkpointing(reached, reentrant):
    a, b = reached.make(), reached.make()
    hidden = checkpoint(lambda x: x * a, b * 2, use_reentrant=reentrant)
    logits = checkpoint(lambda x: x.exp() * a, hidden, use_reentrant=reentrant)
    assert reached(tether(torch.zeros(()), logits)) == 2
    assert a.grad is None or not a.grad.any()


def test_a_value_without_gradient_is_tied(reached):
    """A rank whose loss happens to be a constant has to take part in the average."""
    a = reached.make()
    assert reached(tether(torch.zeros(()), a * 2)) == 1
    assert a.grad is None


def test_the_second_derivative():
    w = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda w: tether(w.pow(3).sum(), w.exp()), w)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_outputs_that_are_not_finite(bad):
    w = torch.ones(3, requires_grad=True)
    hidden = w * 2
    logits = hidden * torch.tensor([1.0, bad, 1.0])
    loss = tether(hidden.sum(), {"logits": logits, "log": (hidden - 2).log()})
    assert loss.item() == 6
    loss.backward()
    assert w.grad.tolist() == [2, 2, 2]


class Ops(TorchDispatchMode):
    """Counts operators."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("logits", [0, 1])
def test_backward_does_the_same_work(stack, logits):
    model, x = stack

    def work(tie):
        model.zero_grad()
        hidden = model.layer[0](x)
        output = model.logits(model.layer[1](hidden))
        loss = hidden.sum() + (logits * output.sum() if logits else 0)
        loss = tie(loss, output)
        with Ops() as ops:
            loss.backward()
        # Reading what forward saved detaches it, even where there is no gradient to compute with.
        return [name for name in ops.names if name != "aten.detach.default"]

    assert work(tether) == work(lambda loss, output: loss)


def test_autocast(stack):
    model, x = stack
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
        loss = tether(model.layer[0](x).float().pow(2).mean(), logits)
    assert (logits.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    loss.backward()
    assert model.layer[0][0].weight.grad.dtype == torch.float32
    assert model.logits.weight.grad is None


def test_without_grad(stack):
    model, x = stack
    with torch.no_grad():
        loss = tether(model(x).sum(), model(x))
    assert not loss.requires_grad


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_in_a_compiled_step(stack):
    model, x = stack

    def step(x):
        hidden = model.layer[0](x)
        return tether(hidden.pow(2).mean(), model.logits(hidden))

    step(x).backward()
    expected = model.layer[0][0].weight.grad
    model.zero_grad()
    torch._dynamo.reset()
    torch.compile(step, backend="aot_eager", fullgraph=True)(x).backward()
    torch.testing.assert_close(model.layer[0][0].weight.grad, expected)


def test_models_of_one_process_are_not_synced(stack):
    model, _ = stack
    assert not synced(model)
    assert not synced(nn.Sequential())
