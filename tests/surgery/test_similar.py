"""Layers that change their input least, measured."""

import pytest
import torch
from torch import nn

from hookbrew.errors import SurgeryError
from hookbrew.surgery.similar import best, influence

LISTS = {
    "bert": "bert.encoder.layer", "gpt2": "transformer.h", "llama": "model.layers", "vit": "vit.layers",
    "t5": "decoder.block",
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_influence_is_one_minus_the_cosine_of_the_hidden_states(transformer, name):
    model, batch = transformer(name)
    layers = len(model.get_submodule(LISTS[name]))
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
    states = output.decoder_hidden_states if name == "t5" else output.hidden_states
    found = influence(model, LISTS[name], [batch])
    for number in range(layers - 1):  # the last state has gone through a norm
        one, other = states[number].double(), states[number + 1].double()
        cosine = (one * other).sum(-1) / (one.norm(dim=-1) * other.norm(dim=-1))
        torch.testing.assert_close(found[number], (1 - cosine).mean(), rtol=1e-4, atol=1e-6)
    assert len(found) == layers


def test_a_layer_that_does_nothing_goes_first(transformer):
    model, batch = transformer("llama")
    with torch.no_grad():
        for number in (1, 3):
            layer = model.model.layers[number]
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    assert best(model, "model.layers", 2, [batch]) == [0, 2]
    assert best(model, "model.layers", 4, [batch]) == [0, 1, 2, 3]
    assert influence(model, "model.layers", [batch])[[1, 3]].abs().max() < 1e-6


def test_masked_positions_and_several_batches(transformer):
    model, _ = transformer("bert")
    ids = torch.randint(1, 64, (2, 6))
    mask = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])
    padded = influence(model, "bert.encoder.layer", [{"input_ids": ids, "attention_mask": mask}])
    apart = influence(model, "bert.encoder.layer", [{"input_ids": ids[:1]}, {"input_ids": ids[1:, :3]}])
    torch.testing.assert_close(padded, apart, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(padded, influence(model, "bert.encoder.layer", [{"input_ids": ids}]), rtol=1e-3)


def test_plain_models_and_the_state_they_are_in():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4))
    whole = nn.ModuleDict({"body": model})
    whole.forward = model.forward
    x = torch.randn(16, 4)
    with torch.no_grad():
        model[2].weight.copy_(torch.eye(4))
        model[2].bias.zero_()
    assert best(whole, "body", 1, [x]) == [0]
    assert best(whole, "body", 1, [(x,), (x,)]) == [0]
    assert model[1].training


def test_refused(transformer):
    model, batch = transformer("bert")
    with pytest.raises(SurgeryError, match=r"best: 5 layers of 'bert.encoder.layer', which has 4"):
        best(model, "bert.encoder.layer", 5, [batch])
    with pytest.raises(SurgeryError, match="measured on data, and batches has none"):
        best(model, "bert.encoder.layer", 2, [])
    turned = nn.ModuleDict({"body": nn.Sequential(nn.Linear(4, 3))})
    turned.forward = turned["body"].forward
    with pytest.raises(SurgeryError, match=r"'body.0' is given \(2, 4\) and gives \(2, 3\)"):
        best(turned, "body", 1, [torch.zeros(2, 4)])
