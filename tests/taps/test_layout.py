"""Discovery: stacks of blocks and attention in models of many families, and in the corners of the rules."""

import json

import attrs
import pytest
import torch
from torch import nn

from hookbrew.taps import Block, Layout, Spot, Stack, discover

FAMILIES = {
    "bert": ("bert.encoder.layer", "BertLayer", "attention.self"),
    "distilbert": ("distilbert.transformer.layer", "TransformerBlock", "attention"),
    "gpt2": ("transformer.h", "GPT2Block", "attn"),
    "llama": ("model.layers", "LlamaDecoderLayer", "self_attn"),
    "vit": ("vit.layers", "ViTLayer", "attention"),
    "qwen3": ("model.layers", "Qwen3DecoderLayer", "self_attn"),
    "modernbert": ("model.layers", "ModernBertEncoderLayer", "attn"),
    "roberta": ("roberta.encoder.layer", "RobertaLayer", "attention.self"),
    "mixtral": ("model.layers", "MixtralDecoderLayer", "self_attn"),
    "deberta": ("deberta.encoder.layer", "DebertaV2Layer", "attention.self"),
}


def found(model, *args, **kwargs):
    return discover(model, lambda: model(*args, **kwargs))


def plain(path, kind, count, *attentions):
    """A stack of blocks that run once each, without their shapes."""
    spots = [f"{path}.{number}" if path else str(number) for number in range(count)]
    return Stack(path, kind, tuple(Block(Spot(at), tuple(Spot(f"{at}.{a}") for a in attentions)) for at in spots))


def bare(layout):
    """The stacks without the shapes of their blocks."""
    return [
        attrs.evolve(stack, blocks=tuple(attrs.evolve(block, shape=()) for block in stack.blocks))
        for stack in layout.stacks
    ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_one_stack(transformer, name, attention):
    model, batch = transformer(name)
    if name != "deberta":  # which has but one
        model.set_attn_implementation(attention)
    path, kind, inner = FAMILIES[name]
    layout = found(model, **batch)
    assert layout.model == type(model).__name__
    assert bare(layout) == [plain(path, kind, 4, inner)]
    length = 5 if name == "vit" else 7
    assert {block.shape for block in layout.stacks[0].blocks} == {(2, length, 16)}
    assert layout.prefixes == ("",)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_t5(transformer, attention):
    model, batch = transformer("t5")
    model.set_attn_implementation(attention)
    layout = found(model, **batch)
    own, cross = "layer.0.SelfAttention", "layer.1.EncDecAttention"
    assert bare(layout) == [plain("encoder.block", "T5Block", 3, own), plain("decoder.block", "T5Block", 3, own, cross)]
    assert [stack.blocks[0].shape for stack in layout.stacks] == [(2, 7, 16), (2, 5, 16)]
    assert layout.prefixes == ("encoder", "decoder")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bart(transformer, attention):
    model, batch = transformer("bart")
    model.set_attn_implementation(attention)
    layout = found(model, **batch)
    assert bare(layout) == [
        plain("model.encoder.layers", "BartEncoderLayer", 2, "self_attn"),
        plain("model.decoder.layers", "BartDecoderLayer", 3, "self_attn", "encoder_attn"),
    ]
    assert layout.prefixes == ("model.encoder", "model.decoder")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_albert_is_one_module(transformer, attention):
    model, batch = transformer("albert")
    model.set_attn_implementation(attention)
    (stack,) = found(model, **batch).stacks
    path = "albert.encoder.albert_layer_groups.0"
    inner = f"{path}.albert_layers.0.attention"
    blocks = tuple(Block(Spot(path, n), (Spot(inner, n),), (2, 7, 16)) for n in range(4))
    assert stack == Stack(path, "AlbertLayerGroup", blocks)
    assert stack.shared


def test_groups_of_albert_run_in_turn():
    t = pytest.importorskip("transformers")
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "embedding_size": 4}
    model = t.AlbertModel(t.AlbertConfig(**sizes, num_hidden_layers=4, num_hidden_groups=2))
    (stack,) = found(model, torch.ones(1, 3, dtype=torch.long)).stacks
    assert stack.path == "encoder.albert_layer_groups"
    groups = [f"{stack.path}.{group}" for group in (0, 1)]
    assert [block.spot for block in stack.blocks] == [Spot(path, call) for path in groups for call in (0, 1)]
    assert not stack.shared


def test_a_twin_encoder_is_not_a_block(timm_vit):
    """One encoder for two inputs: the stack is inside of it."""

    class Twin(nn.Module):
        def __init__(self, encoder):
            super().__init__()
            self.encoder = encoder

        def forward(self, x):
            return self.encoder(x) - self.encoder(x.flip(0))

    model, x = timm_vit(fused=True)
    (stack,) = found(Twin(model), x).stacks
    assert stack.path == "encoder.blocks"
    spots = [block.spot for block in stack.blocks]
    assert spots == [Spot(f"encoder.blocks.{block}", call) for call in (0, 1) for block in range(3)]


@pytest.mark.parametrize("fused", [True, False])
def test_timm(timm_vit, fused):
    model, x = timm_vit(fused=fused)
    assert bare(found(model, x)) == [plain("blocks", "Layer", 3, "attn")]


def test_torchs_encoder(torch_encoder):
    model, x = torch_encoder
    assert bare(found(model, x)) == [plain("layers", "TransformerEncoderLayer", 3, "self_attn")]


def test_torchs_transformer():
    model = nn.Transformer(8, 2, 2, 3, 8, batch_first=True)
    layout = found(model, torch.randn(1, 4, 8), torch.randn(1, 3, 8))
    assert bare(layout) == [
        plain("encoder.layers", "TransformerEncoderLayer", 2, "self_attn"),
        plain("decoder.layers", "TransformerDecoderLayer", 3, "self_attn", "multihead_attn"),
    ]
    assert layout.prefixes == ("encoder", "decoder")


def test_one_layer(timm_vit):
    model, x = timm_vit(fused=False, depth=1)
    assert bare(found(model, x)) == [plain("blocks", "Layer", 1, "attn")]
    t = pytest.importorskip("transformers")
    model = t.BertModel(t.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))
    layout = found(model, torch.ones(1, 3, dtype=torch.long))
    assert bare(layout) == [plain("encoder.layer", "BertLayer", 1, "attention.self")]


def test_one_layer_beside_many():
    """An encoder of one block is found although the decoder has a stack that needs no second look."""
    model = nn.Transformer(8, 2, 1, 3, 8, batch_first=True)
    layout = found(model, torch.randn(1, 4, 8), torch.randn(1, 3, 8))
    assert [(stack.path, len(stack.blocks)) for stack in layout.stacks] == [
        ("encoder.layers", 1),
        ("decoder.layers", 3),
    ]


def test_a_network_without_attention(cnn):
    model, x = cnn
    assert found(model, x) == Layout(
        "Cnn", (Stack("stage", "Block", tuple(Block(Spot(f"stage.{n}"), (), (2, 4, 4, 4)) for n in range(3))),)
    )


class Staged(nn.Module):
    """The stages of torchvision's resnets."""

    def __init__(self, block):
        super().__init__()
        for number, width in enumerate((2, 4, 6, 8), 1):
            change = nn.Conv2d(max(2, width - 2), width, 1)
            setattr(self, f"change{number}", change)
            setattr(self, f"layer{number}", nn.Sequential(block(width), block(width)))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(getattr(self, f"change{number}")(x))
        return self.head(x.mean((2, 3)))


def test_stages(cnn):
    model = Staged(type(cnn[0].stage[0]))
    layout = found(model, torch.randn(2, 2, 6, 6))
    names = tuple(f"layer{number}" for number in range(1, 5))
    assert bare(layout) == [plain(name, "Block", 2) for name in names]
    assert layout.prefixes == names


@pytest.mark.parametrize("family", ["ConvNext", "ResNet", "Swin"])
def test_stages_in_a_container_are_blocks(family):
    """As they are in the official hidden_states of these models."""
    t = pytest.importorskip("transformers")
    sizes = {
        "ConvNext": {"num_stages": 2, "hidden_sizes": [4, 8], "depths": [2, 2]},
        "ResNet": {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [2, 2], "layer_type": "basic"},
        "Swin": {"image_size": 16, "embed_dim": 4, "depths": [2, 2], "num_heads": [1, 1], "window_size": 2},
    }[family]
    model = getattr(t, f"{family}Model")(getattr(t, f"{family}Config")(**sizes))
    (stack,) = found(model, torch.randn(1, 3, 16, 16)).stacks
    container = "encoder.layers" if family == "Swin" else "encoder.stages"
    assert (stack.path, stack.kind, len(stack.blocks)) == (container, f"{family}Stage", 2)
    assert [len(block.attentions) for block in stack.blocks] == ([2, 2] if family == "Swin" else [0, 0])


def test_containers_without_attention_give_way(timm_vit):
    model, x = timm_vit(fused=True)
    model.patch_embed = nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 2, 2))
    assert bare(found(model, x)) == [plain("blocks", "Layer", 3, "attn")]
    for layer in model.blocks:
        layer.attn = nn.Identity()
    assert [stack.path for stack in found(model, x).stacks] == ["patch_embed", "blocks"]


def test_the_model_itself_is_a_container():
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))
    assert bare(found(model, torch.zeros(1, 3))) == [plain("", "Linear", 3)]


class Picky(nn.Module):
    """Calls its layers in a given order."""

    def __init__(self, order, *kinds):
        super().__init__()
        self.order = order
        self.layers = nn.ModuleList(kind() for kind in kinds)

    def forward(self, x):
        for number in self.order:
            self.layers[number](x)
        return x


@pytest.mark.parametrize(
    ("order", "kinds", "stacks"),
    [
        ((0, 1), (nn.Tanh, nn.Tanh), 1),
        ((1, 0), (nn.Tanh, nn.Tanh), 0),
        ((0,), (nn.Tanh, nn.Tanh), 0),
        ((0, 1, 1), (nn.Tanh, nn.Tanh), 0),
        ((0, 1), (nn.Tanh, nn.ReLU), 0),
        ((0,), (nn.Tanh,), 0),
    ],
)
def test_what_makes_a_stack(order, kinds, stacks):
    assert len(found(Picky(order, *kinds), torch.zeros(1)).stacks) == stacks


def test_one_module_with_two_places_in_a_container():
    layer = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True)
    (stack,) = found(nn.Sequential(nn.Sequential(layer, layer), nn.Tanh()), torch.zeros(1, 2, 4)).stacks
    assert stack.path == "0"
    assert [block.spot for block in stack.blocks] == [Spot("0.0", 0), Spot("0.0", 1)]
    assert [block.attentions for block in stack.blocks] == [(Spot("0.0.self_attn", 0),), (Spot("0.0.self_attn", 1),)]


def test_a_container_of_which_one_child_runs_again_and_again():
    model = Picky((0, 0, 0), *(lambda: nn.TransformerEncoderLayer(4, 2, 4, batch_first=True),) * 2)
    (stack,) = found(model, torch.zeros(1, 2, 4)).stacks
    assert stack.path == "layers.0"
    assert [block.spot for block in stack.blocks] == [Spot("layers.0", call) for call in range(3)]


def test_blocks_may_have_classes_of_the_same_name():
    """FSDP makes a class for each class that it wraps."""
    kinds = [type("Wrapped", (nn.Tanh,), {}) for _ in range(2)]
    assert len(found(Picky((0, 1), *kinds), torch.zeros(1)).stacks) == 1


def test_a_module_with_two_names_is_one_stack(timm_vit):
    model, x = timm_vit(fused=True)
    model.encoder = model.blocks
    assert [stack.path for stack in found(model, x).stacks] == ["blocks"]


def test_wrapped_models(timm_vit):
    model, x = timm_vit(fused=True)
    wrapped = torch.compile(model, backend="eager")
    assert found(wrapped, x) == found(model, x)


def test_prefixes_are_cut_at_dots():
    paths = ("a.encoder.layers", "a.encoder_two.layers", "a.encoder_two.more.layers", "b")
    layout = Layout("X", tuple(Stack(path, "L", ()) for path in paths))
    assert layout.prefixes == ("a.encoder", "a.encoder_two.layers", "a.encoder_two.more", "b")


def test_a_layout_is_plain_data(transformer):
    model, batch = transformer("albert")
    layout = found(model, **batch)
    assert hash(layout) == hash(found(model, **batch))
    assert json.loads(json.dumps(attrs.asdict(layout)))["stacks"][0]["blocks"][1]["spot"] == {
        "path": "albert.encoder.albert_layer_groups.0",
        "call": 1,
    }


class Woven(nn.Module):
    """Layers whose parts lie in lists side by side, as in XLM: the output of no list is that of a layer."""

    def __init__(self):
        super().__init__()
        self.attentions = nn.ModuleList(nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(3))
        self.ffns = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        for attention, ffn in zip(self.attentions, self.ffns, strict=True):
            x = ffn(x + attention(x, x, x)[0])
        return x


def test_lists_that_take_turns_are_no_stacks():
    model, x = Woven(), torch.randn(2, 4, 8)
    assert discover(model, lambda: model(x)).stacks == ()
    both = nn.Sequential(
        nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    )
    model = nn.ModuleDict({"a": both[0], "b": both[1]})
    model.forward = lambda x: both(x)
    assert [stack.path for stack in discover(model, lambda: model(x)).stacks] == ["a", "b"]
