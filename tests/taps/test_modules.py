"""Modules by the path of a selector."""

import pytest
from torch import nn

import hookbrew as hb
from hookbrew.errors import SelectorError
from hookbrew.taps import modules


def model():
    block = nn.ModuleDict({"dense": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})
    return nn.ModuleDict({"embed": nn.Embedding(3, 2), "layer": nn.ModuleList([block, nn.Identity()])})


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("embed", ["embed"]),
        ("layer", ["layer"]),
        ("layer[0]", ["layer.0"]),
        ("layer[*]", ["layer.0", "layer.1"]),
        ("{embed,layer}", ["embed", "layer"]),
        ("**.dense", ["layer.0.dense"]),
    ],
)
def test_paths_name_modules_and_containers(text, paths):
    inner = model()
    found = modules(inner, text)
    assert [*found] == paths
    assert all(inner.get_submodule(path) is module for path, module in found.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("embd", "selector 'embd' matches no module of ModuleDict. Stopped at the model: no child 'embd'; "
         "did you mean 'embed'?"),
        ("{embed,layr}", "selector '{embed,layr}' matches no module of ModuleDict. Stopped at the model: no child "
         "'layr'; did you mean 'layer'?"),
        ("layer[2]", "selector 'layer[2]': index [2] out of range: 'layer' has 2 children (0..1)"),
        ("logits", "selector 'logits' names a tensor; expected the path of modules, like 'encoder.layer'"),
        ("hidden[1]", "selector 'hidden[1]' names a tensor; expected the path of modules, like 'encoder.layer'"),
        ("embed:in", "selector 'embed:in' names a tensor; expected the path of modules, like 'encoder.layer'"),
        ("embed#1", "selector 'embed#1' names a tensor; expected the path of modules, like 'encoder.layer'"),
        ("", "selector '': it is empty; the model's own output is ':out'"),
    ],
)  # fmt: skip
def test_what_names_none(text, message):
    with pytest.raises(SelectorError) as caught:
        modules(model(), text)
    assert str(caught.value) == message
    assert isinstance(caught.value, hb.HookbrewError)
