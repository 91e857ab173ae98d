"""Similarity of layers against float64, over all batches, without padding."""

import numpy as np
import pytest
import torch

from hookbrew.compare import compare
from hookbrew.compare import layers as module
from hookbrew.errors import HookbrewError, SelectorError


def oracle(x, y):
    """Linear CKA from centred Gram matrices, HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))."""
    n = len(x)
    centre = np.eye(n) - np.ones((n, n)) / n
    k, l = centre @ (x @ x.T) @ centre, centre @ (y @ y.T) @ centre  # noqa: E741
    return (k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum())


def hidden(model, batches):
    """What goes into the first layer and comes out of each, (N, D) of the valid tokens, in float64."""
    found = [[] for _ in range(4)]
    for batch in batches:
        there = batch["attention_mask"].bool()
        state = model.embed.weight.detach().double()[batch["input_ids"]]
        found[0].append(state[there])
        for place, layer in enumerate(model.layers, 1):
            out = state @ layer.weight.detach().double().T + layer.bias.detach().double()
            found[place].append(out[there])
            state = torch.tanh(out) + state
    return [torch.cat(each).numpy() for each in found]


@pytest.mark.parametrize("width", [0, 5])
def test_values_are_those_of_an_oracle(net, batches, width):
    teacher, student = net(8, seed=1), net(5, seed=2)
    found = compare({"teacher": teacher, "student": student}, batches(width=width), sizes=[]).models[1].similarity
    theirs, ours = hidden(teacher, batches()), hidden(student, batches())
    expected = [[oracle(x, y) for y in theirs] for x in ours]
    np.testing.assert_allclose(np.array(found.values), expected, atol=1e-5)
    assert found.over == f"{len(ours[0])} tokens"
    assert found.paths == found.first == ("layers.0:in", "layers.0", "layers.1", "layers.2")
    assert found.last == found.values[3][3]
    assert 0.01 < found.last < 0.99


def test_a_model_is_like_itself(net, batches):
    model = net()
    found = compare({"teacher": model, "student": model}, batches(), sizes=[]).models[1]
    np.testing.assert_allclose(np.diag(found.similarity.values), 1.0, atol=1e-5)
    assert found.quality.agreement == 1.0


class Turned(torch.nn.Module):
    """A layer whose features come before its tokens, as those of a convolution."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, hidden):
        return self.layer(hidden.transpose(1, 2)).transpose(1, 2)


def test_features_may_come_before_tokens(net, batches):
    class Conv(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.turned = torch.nn.ModuleList(Turned(layer) for layer in inner.layers)

        def forward(self, input_ids, attention_mask):
            hidden = self.inner.embed(input_ids).transpose(1, 2)
            for layer in self.turned:
                hidden = torch.tanh(layer(hidden)) + hidden
            return self.inner.head(hidden.transpose(1, 2)[:, 0])

    models = {"teacher": net(8, seed=1), "plain": net(5, seed=2), "conv": Conv(net(5, seed=2))}
    layers = {"teacher": "layers[*]", "plain": "layers[*]", "conv": "turned[*]"}
    _, plain, conv = compare(models, batches(width=2), sizes=[], layers=layers).models
    assert plain.similarity.over == conv.similarity.over
    np.testing.assert_allclose(conv.similarity.values, plain.similarity.values, atol=1e-5)


def test_rows_are_drawn_from_all_batches(net, batches, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 50)
    models = {"teacher": net(8, seed=1), "student": net(6, seed=2)}
    data = batches()
    found = [compare(models, batches(width=width), sizes=[]).models[1].similarity for width in (0, 5)]
    assert found[0].over == "50 tokens"
    np.testing.assert_allclose(found[0].values, found[1].values, atol=1e-5)
    assert len(data) == 5


def test_layers_by_name(net, batches):
    models = {"teacher": net(8, seed=1), "student": net(6, seed=2)}
    found = compare(models, batches(), sizes=[], layers={"teacher": "layers[0,2]", "student": "layers[2]"})
    similarity = found.models[1].similarity
    assert (similarity.paths, similarity.first) == (("layers.2",), ("layers.0", "layers.2"))
    with pytest.raises(SelectorError, match=r"selector 'layer\[\*\]' matches no module of Net.*did you mean 'layers'"):
        compare(models, batches(), sizes=[], layers="layer[*]")
    with pytest.raises(HookbrewError, match="layers: no model is called 'studnt'; did you mean 'student'"):
        compare(models, batches(), sizes=[], layers={"studnt": "layers[2]"})


def test_a_model_without_blocks_is_noted(net, batches):
    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(6, 4)

        def forward(self, input_ids):
            return self.net(input_ids[:, :6].float())

    found = compare({"teacher": net(), "student": Flat()}, batches(), sizes=[])
    assert found.models[1].similarity is None
    assert found.notes == (
        "student: no similarity of layers: selector 'hidden[*]': no stack of equal blocks was found in Flat; "
        "name the layers by their paths",
    )
