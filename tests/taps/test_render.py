"""What stands around the tree: where attention can be read, what the aliases mean, and the same as JSON."""

import json

import pytest
import torch
from torch import nn

from hookbrew.taps import Taps, as_json, outline, render


def ending(model, *args, **kwargs):
    """What is said below the tree."""
    return render(outline(model, lambda: model(*args, **kwargs))).partition("\n\n")[2].splitlines()


def test_where_attention_can_be_read(transformer):
    model, batch = transformer("bert")
    tree = outline(model, lambda: model(**batch))
    ports = {node.selector: node.ports for _, node in tree.nodes() if node.ports}
    assert ports == {"bert.encoder.layer[0:4].attention.self": ("attn", "scores", "q", "k", "v")}
    rows = [line.split() for line in render(tree).splitlines()]
    assert rows[0] == ["module", "class", "parameters", "selector", "ports", "output"]
    assert [row[0] for row in rows if "attn scores q k v" in " ".join(row)] == ["self"]


def test_what_the_aliases_mean(transformer, timm_vit, torch_encoder):
    model, batch = transformer("bert")
    assert ending(model, **batch) == [
        "hidden[0:5]     bert.encoder.layer: 4 BertLayer, hidden[0] is the input of the first",
        "attention[0:4]  bert.encoder.layer[*].attention.self:attn",
        "logits          :out.logits (2, 3)",
    ]
    model, batch = transformer("t5")
    assert ending(model, **batch) == [
        "encoder.hidden[0:4]     encoder.block: 3 T5Block, encoder.hidden[0] is the input of the first",
        "encoder.attention[0:3]  encoder.block[*].layer.0.SelfAttention:attn",
        "decoder.hidden[0:4]     decoder.block: 3 T5Block, decoder.hidden[0] is the input of the first",
        "decoder.attention[0:3]  decoder.block[*].layer.0.SelfAttention:attn",
        "logits                  :out.logits (2, 5, 64)",
    ]
    model, batch = transformer("albert")
    group = "albert.encoder.albert_layer_groups.0"
    assert ending(model, **batch)[:2] == [
        f"hidden[0:5]     {group}#*: 4 x AlbertLayerGroup, hidden[0] is the input of the first",
        f"attention[0:4]  {group}.albert_layers.0.attention#*:attn",
    ]
    model, x = torch_encoder
    assert ending(model, x)[1:] == ["attention[0:3]  layers[*].self_attn:attn", "logits          :out (2, 5, 8)"]
    model, x = timm_vit(fused=True)
    model = model.blocks
    assert ending(model, torch.zeros(1, 2, 8)) == [
        "hidden[0:4]     model: 3 Layer, hidden[0] is the input of the first",
        "attention[0:3]  *.attn:attn",
        "logits          :out (1, 2, 8)",
    ]


@pytest.mark.parametrize("name", ["bert", "albert", "llama", "t5", "bart", "modernbert", "mixtral"])
def test_aliases_and_what_they_mean_are_the_same(transformer, name):
    model, batch = transformer(name)
    said = dict(line.split("  ", 1) for line in ending(model, **batch))
    pairs = {alias: where.strip() for alias, where in said.items() if "attention[" in alias}
    assert pairs
    with Taps(model, {**{alias: alias for alias in said}, **{where: where for where in pairs.values()}}) as taps:
        taps.run(**batch)
    for alias, where in pairs.items():
        assert all(map(torch.equal, taps[alias], taps[where]))
    for alias in said:
        if "hidden[" in alias:
            assert len(taps[alias]) == int(alias.partition(":")[2][:-1])


def test_hybrids():
    """Blocks of one class, some of which have attention: they share no line, and no alias of attention."""

    class Layer(nn.Module):
        def __init__(self, attends):
            super().__init__()
            self.attends = attends

        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x, x) if self.attends else x

    model = nn.Sequential(nn.Sequential(*map(Layer, (False, True, True, False))))
    tree = outline(model, lambda: model(torch.zeros(1, 2, 2)))
    found = {node.selector: node for _, node in tree.nodes()}
    assert list(found) == [":out", "0", "0[0]", "0[1:3]", "0[3]"]
    assert [bool(node.ports) for node in found.values()] == [False, False, False, True, False]
    assert ending(model, torch.zeros(1, 2, 2)) == [
        "hidden[0:5]  0: 4 Layer, hidden[0] is the input of the first",
        "logits       :out (1, 2, 2)",
    ]


def test_attention_that_no_one_selector_names():
    class Layer(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.add_module(name, nn.MultiheadAttention(4, 2, batch_first=True))

        def forward(self, x):
            (attention,) = self.children()
            return attention(x, x, x)[0]

    model = nn.Sequential(nn.Sequential(Layer("one"), Layer("a b"), Layer("three")))
    assert ending(model, torch.zeros(1, 2, 4))[1] == "attention[0:3]  0.0.one:attn, 0.1.a?b:attn ... and 1 more"


def test_attention_in_calls_of_several_blocks():
    """A loop over all blocks: each runs twice, so that a path alone does not say which run is meant."""

    class Loop(nn.Module):
        def __init__(self, blocks):
            super().__init__()
            self.blocks = blocks

        def forward(self, x):
            return self.blocks(self.blocks(x))

    blocks = nn.Sequential(*(nn.TransformerEncoderLayer(4, 2, 4, batch_first=True) for _ in range(2)))
    model, x = nn.Sequential(Loop(blocks)), torch.zeros(1, 2, 4)
    assert ending(model, x)[:2] == [
        "hidden[0:5]     0.blocks: 4 TransformerEncoderLayer, hidden[0] is the input of the first",
        "attention[0:4]  0.blocks.0.self_attn#0:attn, 0.blocks.1.self_attn#0:attn ... and 2 more",
    ]


def test_one_module_with_two_places_in_a_container():
    layer = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True)
    model, x = nn.Sequential(nn.Sequential(layer, layer)), torch.zeros(1, 2, 4)
    assert ending(model, x)[1] == "attention[0:2]  0.0.self_attn#*:attn"


def test_children_with_the_names_of_aliases():
    """They go before the alias, which is then not there to be told of."""
    model = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 4, batch_first=True))
    model = nn.ModuleDict({"hidden": model, "attention": nn.Identity()})
    tree = outline(model, lambda: model["hidden"](torch.zeros(1, 2, 4)))
    assert [stack.path for stack in tree.layout.stacks] == ["hidden"]
    assert "\n\n" not in render(tree)


def test_outputs_that_are_no_logits():
    class Text(nn.Module):
        def forward(self, x):
            return "none"

    tree = outline(model := Text(), lambda: model(1))
    assert tree.logits is None
    assert len(render(tree).splitlines()) == 2


def test_json(stack):
    model, x = stack
    found = as_json(outline(model, lambda: model(x)))
    assert (found["model"], found["logits"]) == ("Stack", {"selector": ":out", "shape": (3, 2)})
    assert found["stacks"] == [
        {
            "prefix": "",
            "path": "layer",
            "kind": "Sequential",
            "blocks": tuple(
                {"spot": {"path": f"layer.{i}", "call": None}, "attentions": (), "shape": (3, 4)} for i in range(6)
            ),
        }
    ]
    tree = found["tree"]
    assert json.loads(json.dumps(tree))["children"][0] == {
        "name": "layer[0:6]",
        "selector": "layer[0:6]",
        "path": "layer.0",
        "kind": "Sequential",
        "count": 6,
        "calls": 1,
        "shapes": ["(3, 4)"],
        "parameters": 20,
        "ports": [],
        "children": [
            {
                "name": f"[{i}]",
                "selector": f"layer[0:6][{i}]",
                "path": f"layer.0.{i}",
                "kind": kind,
                "count": 1,
                "calls": 1,
                "shapes": ["(3, 4)"],
                "parameters": size,
                "ports": [],
                "children": [],
            }
            for i, kind, size in [(0, "Linear", 20), (1, "Tanh", 0)]
        ],
    }
