"""torch.compile and torch.export: one graph with the taps inside, an error for a tap that comes too late."""

import copy

import pytest
import torch
from torch import nn

from hookbrew.errors import NotCalledError, SelectorError
from hookbrew.taps import Taps, tap


@pytest.fixture
def compiled():
    """compiled(model): compiled by a backend that counts graphs; its `graphs` grows."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    def make(model, **options):
        torch._dynamo.reset()
        return torch.compile(model, backend=backend, **{"fullgraph": True, **options})

    make.graphs = graphs
    return make


def same(taps, slow, names):
    for name in names:
        one, other = taps[name], slow[name]
        pairs = zip(one, other, strict=True) if isinstance(one, list) else [(one, other)]
        for left, right in pairs:
            torch.testing.assert_close(left, right)


def test_taps_before_compile_make_one_graph(stack, compiled):
    model, x = stack
    texts = {"hidden": "layer[1:]", "arg": "logits:in", "logits": "logits"}
    plain, fast = copy.deepcopy(model), compiled(model)
    with Taps(fast, texts) as taps, Taps(plain, texts) as slow:
        for step in range(6):
            out = taps.run(x + step)
            assert taps["logits"] is out
            slow.run(x + step)
            same(taps, slow, texts)
            (taps["hidden"][2].sum() + taps["logits"].sum()).backward()
            (slow["hidden"][2].sum() + slow["logits"].sum()).backward()
    assert len(compiled.graphs) == 1
    torch.testing.assert_close(model.layer[0][0].weight.grad, plain.layer[0][0].weight.grad)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_attention_and_aliases_are_in_the_one_graph(transformer, compiled, name, implementation):
    model, batch = transformer(name)
    model.set_attn_implementation(implementation)
    texts = {"all": "attention[*]", "hidden": "hidden[*]", "logits": "logits", "q": "attention[-1]:q"}
    plain, fast = copy.deepcopy(model), compiled(model)
    with Taps(fast, texts) as taps, Taps(plain, texts) as slow:
        for _ in range(4):
            taps.run(**batch)
            slow.run(**batch)
            same(taps, slow, texts)
            sum(attention.pow(2).sum() for attention in taps["all"]).backward()
            sum(attention.pow(2).sum() for attention in slow["all"]).backward()
    assert len(compiled.graphs) == 1
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad)


def test_torch_s_own_attention_is_in_the_one_graph(compiled):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    model, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(2, 5, 16)
    texts = {"a": "layers[*].self_attn:attn", "h": "layers[*]"}
    plain, fast = copy.deepcopy(model), compiled(model)
    with Taps(fast, texts) as taps, Taps(plain, texts) as slow:
        for _ in range(3):
            taps.run(x)
            slow.run(x)
            same(taps, slow, texts)
    assert len(compiled.graphs) == 1


def test_the_flag_costs_one_graph_more(stack, compiled):
    model, x = stack
    fast = compiled(model)
    with Taps(fast, {"a": "layer[1]"}) as taps:
        for step in range(4):
            taps.run(x + step)
            seen = taps["a"]
            fast(x)
            assert taps["a"] is seen
    assert len(compiled.graphs) == 2


def test_a_module_that_compiles_itself(stack):
    model, x = stack
    torch._dynamo.reset()
    plain = copy.deepcopy(model)
    model.compile(backend="eager", fullgraph=True)
    with tap(model, a="layer[1]", b=":in") as taps:
        taps.run(x)
    assert taps["b"] is x
    torch.testing.assert_close(taps["a"], plain.layer[1](plain.layer[0](x)))


LATE = (
    "layer.1:out: module Sequential was not called in this forward, or the taps came too late: hooks that are"
    " installed after the first call of a compiled model never run. Install the taps before that call, or call"
    " torch.compiler.reset()"
)


@pytest.mark.parametrize("how", ["whole", "itself", "a part"])
@torch.no_grad()
def test_taps_after_the_first_compiled_call_are_an_error(stack, compiled, how):
    model, x = stack
    torch._dynamo.reset()
    fast = compiled(model) if how == "whole" else model
    if how == "itself":
        model.compile(backend="eager")
    elif how == "a part":
        model.layer[1] = compiled(model.layer[1])
    fast(x)
    text = "layer[1]" if how != "a part" else "layer[1]._orig_mod.0"
    with Taps(fast, {"a": text}) as taps:
        taps.run(x)
        with pytest.raises(NotCalledError) as caught:
            taps["a"]
    part = "layer.1._orig_mod.0:out: module Linear"
    assert str(caught.value) == (LATE.replace("layer.1:out: module Sequential", part) if how == "a part" else LATE)
    torch.compiler.reset()
    with Taps(fast, {"a": text}) as taps:
        taps.run(x)
        assert taps["a"].shape == (3, 4)


def test_a_model_is_not_exported_with_taps_on(stack):
    model, x = stack
    with tap(model, a="layer[1]", b="layer[0]:in") as taps:
        taps.run(x)
        with pytest.raises(SelectorError) as caught:
            torch.export.export(model, (x,))
        assert str(caught.value) == "taps are on this model; leave their `with` block before you export it"
        assert taps["a"].shape == (3, 4)
        taps.run(x)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))
