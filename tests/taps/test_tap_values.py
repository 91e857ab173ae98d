"""What taps read, against the models' own outputs: bit for bit."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from hookbrew.errors import AmbiguousCallError, NotCalledError, SelectorError
from hookbrew.taps import Taps, tap

LAYERS = {
    "bert": ("bert.encoder.layer[0]:in", "bert.encoder.layer[*]"),
    "distilbert": ("distilbert.embeddings", "distilbert.transformer.layer[*]"),
    "albert": (
        "albert.encoder.embedding_hidden_mapping_in",
        "albert.encoder.albert_layer_groups[0].albert_layers[0]#*",
    ),
    "gpt2": ("transformer.h[0]:in", "transformer.h[0:3]", "transformer.ln_f"),
    "llama": ("model.embed_tokens", "model.layers[0:3]", "model.norm"),
    "vit": ("vit.layers[0]:in", "vit.layers[*]"),
}
"""The official hidden states as selectors; pre-norm decoders give the final norm instead of the last block."""


def equal(seen, expected):
    assert len(seen) == len(expected)
    for one, other in zip(seen, expected, strict=True):
        assert torch.equal(one, other)


def gathered(taps, names):
    """Tensors and lists of them in one list."""
    read = [taps[name] for name in names]
    return [tensor for item in read for tensor in (item if isinstance(item, list) else [item])]


@pytest.mark.parametrize("name", list(LAYERS))
def test_hidden_states(transformer, hooks, name):
    model, batch = transformer(name)
    reference, _ = transformer(name)
    expected = reference(**batch, output_hidden_states=True)
    selectors = {str(i): text for i, text in enumerate(LAYERS[name])}
    with Taps(model, {**selectors, "logits": "logits"}) as taps:
        out = taps.run(**batch)
    equal(gathered(taps, selectors), expected.hidden_states)
    assert torch.equal(out.logits, expected.logits)
    assert taps["logits"] is out.logits
    assert hooks(model) == 0


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_hidden_states_of_an_encoder_and_a_decoder(transformer, side):
    model, batch = transformer("t5")
    reference, _ = transformer("t5")
    expected = reference(**batch, output_hidden_states=True)[f"{side}_hidden_states"]
    with tap(model, a=f"{side}.block[0]:in", b=f"{side}.block[0:2]", c=f"{side}.final_layer_norm") as taps:
        taps.run(**batch)
    equal(gathered(taps, "abc"), expected)


def test_the_last_block_of_a_pre_norm_model_is_not_the_last_hidden_state(transformer):
    model, batch = transformer("gpt2")
    with tap(model, block="transformer.h[-1]", norm="transformer.ln_f") as taps:
        taps.run(**batch)
        assert torch.equal(model.transformer.ln_f(taps["block"]), taps["norm"])
    assert not torch.equal(taps["block"], taps["norm"])


def test_eager_attention_is_an_output(transformer):
    model, batch = transformer("bert")
    model.set_attn_implementation("eager")
    with tap(model, a="bert.encoder.layer[*].attention.self:out[1]") as taps:
        taps.run(**batch)
    reference, _ = transformer("bert")
    reference.set_attn_implementation("eager")
    equal(taps["a"], reference(**batch, output_attentions=True).attentions)


def test_a_module_that_is_called_with_keywords_only(transformer):
    model, batch = transformer("llama")
    with tap(model, a="model.layers[1].self_attn:in", b="model.layers[1].input_layernorm") as taps:
        taps.run(**batch)
    assert taps["a"] is taps["b"]


class Named(nn.Module):
    """Takes a state and a mask; is called by name, the mask first."""

    def forward(self, state, mask=None):
        return state * mask


class Namer(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(mask=torch.ones(3), state=x)


def test_the_input_is_the_first_in_the_signature():
    x = torch.randn(2, 3)
    with tap(Namer(Named()), a="inner:in") as taps:
        taps.run(x)
    assert taps["a"] is x
    built_in = nn.Module()
    built_in.forward = torch.mul
    with tap(Namer(built_in), a="inner:in") as taps, pytest.raises(TypeError):
        taps.run(x)  # torch.mul takes no mask; that it has no signature is no mistake


def test_list_or_tensor_by_spelling(stack):
    model, x = stack
    with tap(model, one="layer[2]", many="layer[2:3]", first="{first}", calls="logits#*") as taps:
        taps.run(x)
    assert taps["many"][0] is taps["one"]
    assert isinstance(taps["first"], list)
    assert len(taps["calls"]) == 1
    assert taps.paths == {"one": ["layer.2"], "many": ["layer.2"], "first": ["first"], "calls": ["logits#*"]}


def test_a_child_called_logits_is_not_the_alias(stack):
    model, x = stack
    with tap(model, alias="logits:in", child="logits:out", model="logits") as taps:
        out = taps.run(x)
    assert taps["child"] is taps["model"] is out
    assert taps.paths == {"alias": ["logits:in"], "child": ["logits:out"], "model": ["logits"]}


def test_a_shared_module_needs_a_call_index(transformer):
    model, batch = transformer("albert")
    layer = "albert.encoder.albert_layer_groups[0].albert_layers[0]"
    texts = {"none": layer, "all": f"{layer}#*", "0": f"{layer}#0", "-1": f"{layer}#-1", "1:3": f"{layer}#1:3"}
    with Taps(
        model, {**texts, "4": f"{layer}#4", "-5": f"{layer}#-5", "9:": f"{layer}#9:", "in": f"{layer}#1:in"}
    ) as taps:
        taps.run(**batch)
    every = taps["all"]
    assert len(every) == 4
    assert taps["0"] is every[0]
    assert taps["-1"] is every[3]
    assert taps["in"] is every[0]
    assert [id(tensor) for tensor in taps["1:3"]] == [id(tensor) for tensor in every[1:3]]
    path = "albert.encoder.albert_layer_groups.0.albert_layers.0:out"
    with pytest.raises(AmbiguousCallError) as caught:
        taps["none"]
    assert str(caught.value) == (
        f"{path} was called 4 times in one forward; add a call index: '#0', '#-1', '#::3' or '#*'"
    )
    for call in ("4", "-5", "9:"):
        with pytest.raises(SelectorError) as caught:
            taps[call]
        assert str(caught.value) == f"{path}: call '#{call}' is out of range: it was called 4 time(s) in this forward"


def test_several_modules_with_several_calls_are_one_list():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh())
    with tap(model, it="{0,1}#*") as taps:
        taps.run(torch.randn(1, 2))
    assert [type(t.grad_fn).__name__ for t in taps["it"]] == ["AddmmBackward0", "AddmmBackward0", "TanhBackward0"]


def test_a_module_that_is_not_called(cnn):
    model, x = cnn
    with tap(model, it="spare") as taps:
        taps.run(x)
    with pytest.raises(NotCalledError) as caught:
        taps["it"]
    assert str(caught.value) == (
        "spare:out: module Identity was not called in this forward (parents read its weights directly or skip it)"
    )


def test_weights_that_a_parent_reads():
    model = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True)
    with tap(model, it="self_attn.out_proj") as taps:
        taps.run(torch.randn(1, 3, 4))
    with pytest.raises(NotCalledError) as caught:
        taps["it"]
    assert str(caught.value) == (
        "self_attn.out_proj:out: module NonDynamicallyQuantizableLinear was not called in this forward"
        " (parents read its weights directly or skip it)"
    )


@pytest.mark.parametrize("grad", [True, False])
def test_a_tensor_that_is_changed_in_place(cnn, grad):
    model, x = cnn
    texts = {"bn": "stage[*].bn1", "next": "stage[0].conv2:in", "other": "stage[0].conv1"}
    with torch.set_grad_enabled(grad), Taps(model, texts) as taps:
        taps.run(x)
    assert torch.equal(taps["other"], model.stage[0].conv1(model.stem(x)))
    assert (taps["next"] >= 0).all()
    with pytest.raises(SelectorError) as caught:
        taps["bn"]
    assert str(caught.value) == (
        "stage.0.bn1:out: the tensor of tap 'bn' was changed in place after it was seen; tap the next module's input"
        " (':in' of the one that runs after the change), or use Taps(..., clone=True)"
    )


def test_clones_keep_the_value_and_the_graph(cnn):
    model, x = cnn
    with Taps(model, {"bn": "stage[0].bn1", "conv": "stage[0].conv1"}, clone=True) as taps:
        taps.run(x)
    assert torch.equal(taps["bn"], model.stage[0].bn1(taps["conv"]))
    assert (taps["bn"] < 0).any()
    taps["bn"].sum().backward()
    assert model.stem.weight.grad is not None


def test_inference_tensors_count_no_versions(cnn):
    model, x = cnn
    with torch.inference_mode(), tap(model, it="stage[0]") as taps:
        taps.run(x)
    assert taps["it"].is_inference()


def test_student_gradients_are_those_of_the_official_hidden_states(transformer):
    model, batch = transformer("bert")
    reference, _ = transformer("bert")
    sum(h.square().mean() for h in reference(**batch, output_hidden_states=True).hidden_states[1:]).backward()
    with tap(model, hidden="bert.encoder.layer[*]") as taps:
        taps.run(**batch)
    sum(h.square().mean() for h in taps["hidden"]).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(grads) > 60
    for name, parameter in reference.named_parameters():
        assert torch.equal(grads[name], parameter.grad) if parameter.grad is not None else name not in grads


def test_teacher_tensors_without_grad_serve_a_student(cnn):
    teacher, x = cnn
    student = copy.deepcopy(teacher)
    with tap(teacher, it="stage[0]") as theirs, tap(student, it="stage[1]") as ours:
        with torch.no_grad():
            theirs.run(x)
        ours.run(x)
    assert not theirs["it"].requires_grad
    mse_loss(ours["it"], theirs["it"]).backward()
    assert student.stem.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_same_model_as_teacher_and_student(cnn):
    model, x = cnn
    with tap(model, it="stage[0]") as theirs, tap(model, it="stage[0]") as ours:
        with torch.no_grad():
            theirs.run(x)
        kept = theirs["it"]
        ours.run(2 * x)
        assert theirs["it"] is kept
        assert not torch.equal(ours["it"], kept)


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)


def test_recomputation_in_backward_is_not_recorded():
    model, calls = Checkpointed(), []
    model.inner[0].register_forward_hook(lambda *_: calls.append(1))
    with tap(model, it="inner[0]") as taps:
        out = taps.run(torch.randn(2, 4))
        (out.sum() + taps["it"].sum()).backward()
        assert len(calls) == 2
        assert taps["it"].shape == (2, 4)


def test_a_tensor_that_is_changed_between_two_readings(stack):
    model, x = stack
    with tap(model, it="layer[0]:in") as taps:
        taps.run(x)
        assert taps["it"] is x
        x.zero_()
        with pytest.raises(SelectorError, match=r"^layer\.0:in: the tensor of tap 'it' was changed in place"):
            taps["it"]


@pytest.mark.parametrize("text", ["layer[0]", "layer[0]:in"])
def test_inside_vmap_and_after(stack, text):
    model, x = stack
    with tap(model, it=text) as taps:
        inside = torch.vmap(lambda row: (taps.run(row), taps["it"])[1])(x)
        assert torch.equal(inside, x if text.endswith("in") else torch.vmap(model.layer[0])(x))
        with pytest.raises(SelectorError) as caught:
            taps["it"]
    point = "layer.0:in" if text.endswith("in") else "layer.0:out"
    assert str(caught.value) == f"{point}: the tensor of tap 'it' lives inside torch.func.vmap; read it there"


def test_inside_a_gradient_and_after(stack):
    model, x = stack
    with tap(model, it="layer[0]") as taps:
        found = torch.func.grad(lambda x: (taps.run(x), taps["it"].pow(2).sum())[1])(x)
    expected = x.clone().requires_grad_()
    out = model.layer[0](expected)
    out.pow(2).sum().backward()
    assert torch.equal(found, expected.grad)
    assert torch.equal(taps["it"], out)


def test_a_module_that_was_replaced_after_the_taps_were_made(stack, hooks):
    model, x = stack
    taps = tap(model, it="layer[1]", other="heads.self")
    model.layer[1] = nn.Sequential(model.layer[1], nn.ReLU())
    with pytest.raises(SelectorError) as caught:
        taps.__enter__()
    assert str(caught.value) == "'layer.1' of the model was replaced after these taps were made; make them anew"
    assert hooks(model) == 0
    model.layer[1] = model.layer[1][0]
    with taps:
        taps.run(x)
    assert taps["it"].shape == (3, 4)
    del model.heads["self"]
    with pytest.raises(SelectorError, match=r"^'heads\.self' of the model was replaced after these taps were made"):
        taps.__enter__()
