"""Gradient checkpointing: the same gradients, nothing recorded twice, and an error where torch drops the graph."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hookbrew.errors import SelectorError
from hookbrew.taps import Taps, tap

TEXTS = {
    "layers": "bert.encoder.layer[*]",
    "inputs": "bert.encoder.layer[1:3]:in",
    "inner": "bert.encoder.layer[1].attention.self.{query,value}",
    "attention": "attention[*]",
    "keys": "attention[2]:k",
}


def gradients(model, batch, texts=TEXTS):
    """The gradients of a loss of every tap, and the values."""
    with Taps(model, texts) as taps:
        taps.run(**batch)
        read = {name: taps[name] if isinstance(taps[name], list) else [taps[name]] for name in texts}
        sum(tensor.float().pow(2).mean() for tensors in read.values() for tensor in tensors).backward()
        counts = {point: len(calls) for point, calls in taps._store.calls.items()}
    assert set(counts.values()) == {1}
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, read


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_without_reentry_gradients_are_equal(transformer, implementation):
    model, batch = transformer("bert")
    model.set_attn_implementation(implementation)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    other = copy.deepcopy(model)
    other.activation_checkpointing_enable({"use_reentrant": False})
    expected, values = gradients(model, batch)
    found, seen = gradients(other, batch)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for name in TEXTS:
        assert all(torch.equal(one, two) for one, two in zip(values[name], seen[name], strict=True))


@pytest.mark.parametrize("text", ["bert.encoder.layer[1].attention.self.query", "attention[1]"])
def test_with_reentry_what_lies_inside_has_no_gradient(transformer, text):
    model, batch = transformer("bert")
    model.train()
    model.activation_checkpointing_enable({"use_reentrant": True})
    with tap(model, layers="bert.encoder.layer[*]", inside=text) as taps:
        taps.run(**batch)
    assert all(layer.requires_grad for layer in taps["layers"])
    with pytest.raises(SelectorError) as caught:
        taps["inside"]
    place = "bert.encoder.layer.1.attention.self" + (":attn" if text.startswith("attention") else ".query:out")
    assert str(caught.value) == (
        f"{place}: the model computed the tensor of tap 'inside' without a gradient, in a checkpoint or under no_grad;"
        " use_reentrant=False keeps it in checkpoints, and under torch.no_grad() run() asks for none"
    )


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_with_reentry_values_alone_can_be_read(transformer):
    model, batch = transformer("bert")
    model.train()
    model.activation_checkpointing_enable({"use_reentrant": True})
    with tap(model, inside="attention[1]") as taps:
        with torch.no_grad():
            taps.run(**batch)
        assert not taps["inside"].requires_grad


class Frozen(nn.Module):
    """Runs its first layer without gradients."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        with torch.no_grad():
            x = self.first(x)
        return self.head(x)


def test_a_part_without_gradients_of_a_model_that_is_not_trained():
    model, x = Frozen(), torch.randn(2, 4)
    with tap(model, a="first", b="head:in") as taps:
        taps.run(x)
        assert taps["b"].shape == (2, 4)  # the head is called with gradients on; that its input has none is no surprise
        with pytest.raises(SelectorError, match=r"^first:out: the model computed the tensor of tap 'a' without"):
            taps["a"]
        model.requires_grad_(False)
        taps.run(x)
        assert torch.equal(taps["a"], model.first(x))


class Blocks(nn.Module):
    """Checkpoints modules themselves, as timm does, so that their hooks run again in backward."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x


def test_recomputation_is_not_recorded():
    model, x = Blocks(), torch.randn(2, 4, requires_grad=True)
    with tap(model, a="blocks[*].0") as taps:
        out = taps.run(x)
        seen = taps["a"]
        out.sum().backward()
        assert all(one is other for one, other in zip(taps["a"], seen, strict=True))
        taps.run(x)
        assert len(taps["a"]) == 3
