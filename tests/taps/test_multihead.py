"""torch's own multi-head attention, whose kernel may be closed, against the weights that it returns when asked."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hookbrew.errors import SelectorError
from hookbrew.taps import tap

PADDING = torch.tensor([[False] * 4 + [True] * 2, [False] * 3 + [True] * 3, [False] * 5 + [True]])


def inputs(batch_first=True):
    torch.manual_seed(0)
    x = torch.randn(3, 6, 16)
    return x if batch_first else x.transpose(0, 1)


def weights(module, *args, **options):
    """What torch gives, by head."""
    return copy.deepcopy(module)(*args, **options, need_weights=True, average_attn_weights=False)[1]


MASKS = {
    "none": {},
    "padding": {"key_padding_mask": PADDING},
    "pairs": {"attn_mask": torch.ones(6, 6, dtype=torch.bool).triu(1)},
    "heads": {"attn_mask": torch.ones(6, 6, dtype=torch.bool).triu(2).repeat(6, 1, 1)},
    "both": {"key_padding_mask": PADDING, "attn_mask": torch.ones(6, 6, dtype=torch.bool).triu(1)},
    "added": {"attn_mask": torch.linspace(-1, 1, 36).view(6, 6)},
    "added, padding": {"attn_mask": torch.linspace(-1, 1, 36).view(6, 6), "key_padding_mask": PADDING * -5.0},
    "causal": {"attn_mask": torch.ones(6, 6, dtype=torch.bool).triu(1), "is_causal": True},
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", MASKS)
def test_every_mask(mask, batch_first):
    module, x = nn.MultiheadAttention(16, 2, batch_first=batch_first), inputs(batch_first)
    expected = weights(module, x, x, x, **MASKS[mask])
    with tap(module, a=":attn", s=":scores") as taps:
        taps.run(x, x, x, **MASKS[mask], need_weights=False)
    torch.testing.assert_close(taps["a"], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(taps["s"].softmax(-1), expected, atol=1e-6, rtol=0)


def test_mixed_masks():
    """torch warns about a bool mask beside an added one, and takes both."""
    module, x = nn.MultiheadAttention(16, 2, batch_first=True), inputs()
    options = {"attn_mask": torch.linspace(-1, 1, 36).view(6, 6), "key_padding_mask": PADDING}
    with pytest.warns(UserWarning, match="mismatched key_padding_mask and attn_mask"):
        expected = weights(module, x, x, x, **options)
    with tap(module, a=":attn") as taps, pytest.warns(UserWarning, match="mismatched key_padding_mask and attn_mask"):
        taps.run(x, x, x, **options)
    torch.testing.assert_close(taps["a"], expected, atol=1e-6, rtol=0)


def test_other_widths_and_another_length_of_keys():
    module = nn.MultiheadAttention(16, 2, kdim=8, vdim=4, bias=False, batch_first=True)
    q, k, v = inputs(), torch.randn(3, 5, 8), torch.randn(3, 5, 4)
    with tap(module, a=":attn", q=":q", k=":k", v=":v") as taps:
        out, _ = taps.run(q, k, v)
    torch.testing.assert_close(taps["a"], weights(module, q, k, v))
    assert taps["q"].shape == (3, 2, 6, 8)
    assert taps["k"].shape == (3, 2, 5, 8)
    torch.testing.assert_close(module.out_proj((taps["a"] @ taps["v"]).transpose(1, 2).flatten(2)), out)


def test_without_a_batch():
    module, x = nn.MultiheadAttention(16, 2), inputs()[0]
    with tap(module, a=":attn") as taps:
        taps.run(x, x, x, key_padding_mask=PADDING[0])
    expected = weights(module, x, x, x, key_padding_mask=PADDING[0])
    torch.testing.assert_close(taps["a"], expected[None], atol=1e-6, rtol=0)


def test_dropout_is_left_out_and_gradients_arrive():
    module, x = nn.MultiheadAttention(16, 2, dropout=0.5, batch_first=True), inputs()
    expected = weights(module.eval(), x, x, x)
    module.train()
    with tap(module, a=":attn") as taps:
        taps.run(x, x, x)
    torch.testing.assert_close(taps["a"], expected, atol=1e-6, rtol=0)
    taps["a"].pow(2).sum().backward()
    assert module.in_proj_weight.grad.abs().sum() > 0


class Pool(nn.Module):
    """Calls the function with weights of its own, as open_clip and others do."""

    def __init__(self, of):
        super().__init__()
        self.weight, self.bias, self.out = of.in_proj_weight, of.in_proj_bias, of.out_proj

    def forward(self, x):
        return F.multi_head_attention_forward(
            x, x, x, 16, 2, self.weight, self.bias, None, None, False, 0.0,
            self.out.weight, self.out.bias, key_padding_mask=PADDING,
        )[0]  # fmt: skip


def test_the_function_alone():
    module, x = nn.MultiheadAttention(16, 2), inputs(batch_first=False)
    model = nn.Sequential(Pool(module))
    with tap(model, a="0:attn", v="0:v") as taps:
        assert torch.equal(taps.run(x), model(x))
    torch.testing.assert_close(taps["a"], weights(module, x, x, x, key_padding_mask=PADDING), atol=1e-6, rtol=0)
    assert taps["v"].shape == (3, 2, 6, 8)


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_keys_that_are_no_tokens(options):
    module, x = nn.MultiheadAttention(16, 2, batch_first=True, **options), inputs()
    with tap(module, a=":attn") as taps:
        taps.run(x, x, x)
    with pytest.raises(SelectorError) as caught:
        taps["a"]
    assert str(caught.value) == (
        ":attn: attention with add_bias_kv or add_zero_attn has keys that are no tokens; it cannot be read"
    )


def encoder(**options):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 3, **options).eval()


@pytest.mark.parametrize("train", [False, True])
def test_an_encoder(train):
    model, x = encoder(enable_nested_tensor=False).train(train), inputs()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for layer in model.layers:
        layer.self_attn.dropout = 0.0
    plain = model(x, src_key_padding_mask=PADDING)
    with tap(model, a="attention[*]", h="hidden[*]") as taps:
        out = taps.run(x, src_key_padding_mask=PADDING)
    torch.testing.assert_close(out, plain, atol=1e-6, rtol=0)
    assert torch.equal(taps["h"][0], x)
    assert torch.equal(taps["h"][3], out)
    for layer, state, attention in zip(model.layers, taps["h"][:3], taps["a"], strict=True):
        expected = weights(layer.self_attn, state, state, state, key_padding_mask=PADDING)
        torch.testing.assert_close(attention, expected, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@torch.no_grad()
def test_nested_tensors_are_filled_up():
    """Without gradients torch packs padded batches; a tap gives what they stand for, up to the longest row."""
    model, x = encoder(), inputs()
    plain = model(x, src_key_padding_mask=PADDING)
    with tap(model, a="layers[*].self_attn:attn", s="layers[0].self_attn:scores", h="layers[*]") as taps:
        out = taps.run(x, src_key_padding_mask=PADDING)
    torch.testing.assert_close(out, plain, atol=1e-6, rtol=0)
    assert not taps["h"][0].is_nested
    assert taps["h"][2].shape == (3, 5, 16)
    assert torch.equal(taps["h"][2], out[:, :5])
    assert (taps["h"][0][PADDING[:, :5]] == 0).all()
    dense = copy.deepcopy(model)
    dense.enable_nested_tensor = False
    with tap(dense, a="layers[*].self_attn:attn") as other:
        other.run(x, src_key_padding_mask=PADDING)
    real = ~PADDING[:, None, :5].expand(3, 2, 5)
    for one, two in zip(taps["a"], other["a"], strict=True):
        torch.testing.assert_close(one[real], two[:, :, :5, :5][real], atol=1e-6, rtol=0)
    assert torch.isinf(taps["s"][1, :, :, 3:]).all()


def test_a_layer_around_it():
    model = encoder()
    for text, write in [("layers[0]:attn", "layers.0.self_attn:attn"), (":scores", "layers.0.self_attn:scores")]:
        with pytest.raises(SelectorError) as caught:
            tap(model, a=text)
        assert str(caught.value).endswith(f"around torch's MultiheadAttention; write '{write}'")


def test_weights_that_change_before_the_attention_is_read():
    module, x = nn.MultiheadAttention(16, 2, batch_first=True), inputs()
    with tap(module, a=":attn") as taps:
        taps.run(x, x, x)
    with torch.no_grad():
        module.in_proj_weight.mul_(2)
    with pytest.raises(SelectorError, match=r"^:attn: the tensor of tap 'a' was changed in place after it was seen"):
        taps["a"]


class Projected(nn.Module):
    """Its attention is given what a linear layer made: halves, under autocast."""

    def __init__(self):
        super().__init__()
        self.linear, self.attention = nn.Linear(16, 16), nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        x = self.linear(x)
        return self.attention(x, x, x, need_weights=False)[0]


@torch.no_grad()
def test_halves_are_computed_in_fp32():
    torch.manual_seed(0)
    model, x = Projected(), inputs()
    with tap(model, a="attention:attn", q="attention:q") as exact:
        exact.run(x)
    with tap(model, a="attention:attn", q="attention:q", x="attention:in") as taps:
        with torch.autocast("cpu", torch.bfloat16):
            taps.run(x)
            inside = taps["a"]
        taps.run(x)
        with torch.autocast("cpu", torch.bfloat16):
            taps.run(x)
    assert taps["x"].dtype == torch.bfloat16
    assert taps["a"].dtype == taps["q"].dtype == torch.float32
    assert torch.equal(taps["a"], inside)
    seen = taps["x"].float()
    expected = weights(model.attention, seen, seen, seen)
    torch.testing.assert_close(taps["a"], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(taps["a"], exact["a"], atol=2e-3, rtol=0)


def test_the_more_precise_of_input_and_weights_decides():
    module, x = nn.MultiheadAttention(16, 2, batch_first=True).to(torch.bfloat16), inputs()
    with tap(module, q=":q") as taps, torch.autocast("cpu", torch.bfloat16):
        taps.run(x, x, x)
    weight, bias = module.in_proj_weight[:16].float(), module.in_proj_bias[:16].float()
    assert torch.equal(taps["q"], F.linear(x, weight, bias).unflatten(-1, (2, 8)).transpose(1, 2))


class Self(nn.MultiheadAttention):
    """Attention with a signature of its own."""

    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


def test_a_subclass_is_watched_like_any_other_module():
    module, x = Self(16, 2, batch_first=True), inputs()
    model = nn.Sequential(module)
    with tap(model, a="0:attn") as taps:
        assert torch.equal(taps.run(x), model(x))
    plain = nn.MultiheadAttention(16, 2, batch_first=True)
    plain.load_state_dict(module.state_dict())
    torch.testing.assert_close(taps["a"], weights(plain, x, x, x), atol=1e-6, rtol=0)


class Static(Pool):
    """Brings its keys or values along."""

    given = "static_k"

    def forward(self, x):
        return F.multi_head_attention_forward(
            x, x, x, 16, 2, self.weight, self.bias, None, None, False, 0.0,
            self.out.weight, self.out.bias, **{self.given: torch.zeros(6, 6, 8)},
        )[0]  # fmt: skip


@pytest.mark.parametrize("given", ["static_k", "static_v"])
def test_keys_and_values_that_are_not_projected(given):
    model = nn.Sequential(Static(nn.MultiheadAttention(16, 2)))
    model[0].given = given
    with tap(model, a="0:attn") as taps:
        taps.run(inputs(batch_first=False))
    with pytest.raises(SelectorError) as caught:
        taps["a"]
    assert str(caught.value) == (
        "0:attn: attention with static_k or static_v has keys and values of its own; it cannot be read"
    )
