"""hidden[i] and attention[i] mean the same on every model: a config differs in nothing but the model."""

import copy

import pytest
import torch
from torch import nn

from hookbrew.errors import SelectorError
from hookbrew.taps import Taps, discover, tap

FAMILIES = ["bert", "distilbert", "albert", "gpt2", "llama", "vit", "qwen3", "modernbert", "roberta", "mixtral"]
FINAL = {
    "gpt2": "transformer.ln_f",
    "llama": "model.norm",
    "qwen3": "model.norm",
    "mixtral": "model.norm",
    "modernbert": "model.final_norm",
}
"""Where the official last hidden state of a pre-norm model is taken after the final norm."""


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_hidden_states_by_alias(transformer, hooks, name):
    model, batch = transformer(name)
    expected = copy.deepcopy(model)(**batch, output_hidden_states=True)
    final = {"final": FINAL[name]} if name in FINAL else {}
    with Taps(model, {"all": "hidden[*]", "first": "hidden[0]", "logits": "logits", **final}) as taps:
        out = taps.run(**batch)
    states = [*taps["all"][:-1], taps["final"] if final else taps["all"][-1]]
    assert len(states) == len(expected.hidden_states) == 5
    for one, other in zip(states, expected.hidden_states, strict=True):
        assert torch.equal(one, other)
    assert taps["first"] is taps["all"][0]
    assert torch.equal(out.logits, expected.logits)
    assert hooks(model) == 0


@pytest.mark.parametrize(("name", "prefix"), [("t5", ""), ("bart", "model.")])
@torch.no_grad()
def test_an_encoder_and_a_decoder(transformer, name, prefix):
    model, batch = transformer(name)
    expected = copy.deepcopy(model)(**batch, output_hidden_states=True)
    with Taps(model, {"e": f"{prefix}encoder.hidden[*]", "d": f"{prefix}decoder.hidden[0:3]"}) as taps:
        taps.run(**batch)
    last = len(expected.encoder_hidden_states) - (name == "t5")  # which appends the final norm instead of the block
    for one, other in zip(taps["e"][:last], expected.encoder_hidden_states[:last], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(taps["d"], expected.decoder_hidden_states[:3], strict=True):
        assert torch.equal(one, other)


class Blocks(nn.Module):
    """A model with a child that has the name of an alias."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        for layer in self.hidden:
            x = layer(x)
        return x


def test_a_child_of_that_name_comes_first():
    x = torch.randn(2, 4)
    with tap(Blocks(), a="hidden[0]") as taps:
        taps.run(x)
    assert taps.paths == {"a": ["hidden.0"]}
    assert not torch.equal(taps["a"], x)
    with tap(nn.Sequential(Blocks()), a="0.hidden[-1]") as taps:
        taps.run(x)
    assert taps.paths == {"a": ["0.hidden.2"]}


def test_list_or_tensor_by_spelling(transformer):
    model, batch = transformer("bert")
    texts = {"one": "hidden[-1]", "two": "hidden[1,3]", "few": "hidden[1:3]", "all": "hidden[*]"}
    with Taps(model, texts) as taps:
        taps.run(**batch)
    assert taps["one"] is taps["all"][4]
    assert [t is u for t, u in zip(taps["two"], taps["all"][1::2], strict=True)] == [True, True]
    assert [t is u for t, u in zip(taps["few"], taps["all"][1:3], strict=True)] == [True, True]


def test_paths_say_what_an_alias_stands_for(transformer):
    model, batch = transformer("bert")
    taps = tap(model, h="hidden[0:2]", a="attention[1]:q", x="classifier")
    assert taps.pending == ("h", "a")
    assert taps.paths == {"x": ["classifier"]}
    with taps:
        taps.run(**batch)
    assert taps.pending == ()
    assert taps.paths == {
        "x": ["classifier"],
        "h": ["bert.encoder.layer.0:in", "bert.encoder.layer.0"],
        "a": ["bert.encoder.layer.1.attention.self:q"],
    }


def test_shared_blocks_are_their_calls(transformer):
    model, batch = transformer("albert")
    with tap(model, a="attention[-1]", each="**.albert_layers[0].attention#*:attn") as taps:
        taps.run(**batch)
    assert taps["a"] is taps["each"][3]
    assert taps.paths["a"] == ["albert.encoder.albert_layer_groups.0.albert_layers.0.attention#3:attn"]


def test_the_probe_changes_nothing(transformer):
    model, batch = transformer("bert")
    model.train()
    torch.manual_seed(3)
    plain = model(**batch).logits
    torch.manual_seed(3)
    with tap(model, h="hidden[*]") as taps:
        assert torch.equal(taps.run(**batch).logits, plain)
    assert all(module.training for module in model.modules())


def test_a_layout_is_used_for_several_taps(transformer):
    model, batch = transformer("gpt2")
    forwards = []
    model.register_forward_pre_hook(lambda *_: forwards.append(1))
    layout = discover(model, lambda: model(**batch))
    with Taps(model, {"h": "hidden[1]"}, layout=layout) as taps:
        taps.run(**batch)
        taps.run(**batch)
    assert len(forwards) == 3
    with tap(model, h="hidden[1]") as other:
        other.run(**batch)
        other.run(**batch)
    assert len(forwards) == 6
    assert torch.equal(taps["h"], other["h"])


MISTAKES = [
    ("bert", "hidden[5]", "index [5] out of range: there are hidden[0..4]"),
    ("bert", "hidden[1,-6]", "index [-6] out of range: there are hidden[0..4]"),
    ("bert", "attention[4:]", "index [4:] selects nothing: there are attention[0..3]"),
    ("bert", "hidden[2,1]", "index [2,1] is out of order, but matches come in the model's own order; write [1,2]"),
    ("bert", "hidden[::-1]", "index [::-1] goes backwards, but matches come in the model's own order"),
    ("bert", "hidden[1]:in", "hidden[i] is a tensor; it has no port, pick or call"),
    ("bert", "hidden[1]#0", "hidden[i] is a tensor; it has no port, pick or call"),
    *(
        ("bert", text, "attention[i] is one attention; its ports are attn, scores, q, k, v, without pick or call")
        for text in ("attention[1]:in", "attention[1]:attn[0]", "attention[1]#0")
    ),
    (
        "t5",
        "hidden[1]",
        "there are 2 stacks, 'encoder.block', 'decoder.block'; write which: 'encoder.hidden[1]'",
    ),
    ("t5", "shared.hidden[1]", "no stack of equal blocks was found in 'shared'; name the layers by their paths"),
]


@pytest.mark.parametrize(("name", "text", "problem"), MISTAKES)
def test_mistakes(transformer, hooks, name, text, problem):
    model, batch = transformer(name)
    with pytest.raises(SelectorError) as caught, tap(model, a=text) as taps:
        taps.run(**batch)
    assert str(caught.value) == f"selector '{text}': {problem}"
    assert hooks(model) == 0


class Twins(nn.Module):
    """Two stacks, of which one has the beginning of the other's name."""

    def __init__(self):
        super().__init__()
        self.layer, self.layers = (nn.ModuleList(nn.Linear(4, 4) for _ in range(2)) for _ in range(2))

    def forward(self, x):
        for layer in (*self.layer, *self.layers):
            x = layer(x)
        return x


def test_a_path_in_front_is_whole_names():
    with tap(Twins(), a="layer.hidden[*]", b="layers.hidden[-1]") as taps:
        taps.run(torch.randn(2, 4))
    assert taps.paths == {"a": ["layer.0:in", "layer.0", "layer.1"], "b": ["layers.1"]}


def test_a_model_without_blocks():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 4)
    with pytest.raises(SelectorError) as caught, tap(model, a="hidden[1]") as taps:
        taps.run(x)
    assert str(caught.value) == (
        "selector 'hidden[1]': no stack of equal blocks was found in Sequential; name the layers by their paths"
    )


def test_blocks_without_attention():
    model = nn.Sequential(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), nn.ReLU())
    with pytest.raises(SelectorError) as caught, tap(model, a="attention[1]") as taps:
        taps.run(torch.randn(2, 4))
    assert str(caught.value) == "selector 'attention[1]': no attention was found in '0.0'"


@pytest.mark.parametrize("text", ["hidden", "attention", "hiden[1]", "encoder.hidden[1]", "*.hidden[1]"])
def test_what_is_no_alias_is_a_path(transformer, text):
    model, _ = transformer("bert")
    with pytest.raises(SelectorError, match="matches no module of BertForSequenceClassification"):
        tap(model, a=text)


@torch.no_grad()
def test_the_probe_does_not_fill_a_cache(transformer):
    """The first run finds out what an alias stands for, and is still a forward with what the user gave."""
    model, batch = transformer("llama")
    ids = batch["input_ids"]
    past = model(ids[:, :5], use_cache=True).past_key_values
    expected = model(ids[:, 5:], past_key_values=copy.deepcopy(past)).logits
    with tap(model, a="attention[0]") as taps:
        out = taps.run(ids[:, 5:], past_key_values=past)
    assert torch.equal(out.logits, expected)
    assert taps["a"].shape == (2, 2, 2, 7)
    assert past.get_seq_length() == 7


class Writes(Blocks):
    """Takes what it is called with for its own."""

    def forward(self, x, log=()):
        x.mul_(2)
        log.append(1)
        return super().forward(x)


def test_the_probe_writes_into_copies():
    model, x, log = Writes(), torch.randn(2, 4), []
    model.blocks = model._modules.pop("hidden")
    model.hidden = model.blocks._modules.values()
    with tap(model, a="hidden[0]") as taps:
        before = x.clone()
        taps.run(x, log)
    assert taps["a"] is x
    assert torch.equal(x, 2 * before)
    assert len(log) == 1


def test_inputs_with_a_history_can_be_copied(transformer):
    model, batch = transformer("t5")
    encoded = model.encoder(batch["input_ids"])
    with tap(model, a="decoder.hidden[1]") as taps:
        taps.run(encoder_outputs=encoded, decoder_input_ids=batch["decoder_input_ids"])
    taps["a"].sum().backward()
    assert model.encoder.block[0].layer[0].SelfAttention.q.weight.grad.abs().sum() > 0


def test_inputs_that_cannot_be_copied():
    model = Writes()
    model.blocks = model._modules.pop("hidden")
    model.hidden = model.blocks._modules.values()
    with tap(model, a="hidden[0]") as taps, pytest.raises(SelectorError) as caught:
        taps.run(torch.randn(2, 4), (number for number in range(3)))
    assert str(caught.value) == (
        "the inputs cannot be copied for the forward that finds what aliases stand for (cannot pickle 'generator'"
        " object); give Taps(..., layout=discover(...)), or name the layers by their paths"
    )


def test_the_layout_of_another_model(transformer):
    model, batch = transformer("gpt2")
    layout = discover(model, lambda: model(**batch))
    with pytest.raises(SelectorError) as caught:
        Taps(transformer("bert")[0], {"h": "hidden[1]"}, layout=layout)
    assert str(caught.value) == "the layout is of another model: BertForSequenceClassification has no 'transformer.h.0'"
