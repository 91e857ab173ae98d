"""What a function mode hears inside an attention module, whatever the module does around its attention."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.bias import causal_lower_right

from hookbrew.errors import MutatedError, SelectorError
from hookbrew.taps import Taps, tap


class Attention(nn.Module):
    """Calls one function."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, *args):
        return self.call(*args)


class Around(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.attention = Attention(call)

    def forward(self, *args):
        return self.attention(*args)


def tensors(heads=4, queries=3, keys=5):
    torch.manual_seed(0)
    return torch.randn(2, heads, queries, 8), torch.randn(2, heads, keys, 8), torch.randn(2, heads, keys, 8)


def weights(q, k):
    """Probabilities written out."""
    return (q @ k.mT / math.sqrt(8)).softmax(-1)


def message(taps, name):
    with pytest.raises(SelectorError) as caught:
        taps[name]
    return str(caught.value)


CALLS = {
    "all by name": lambda s: torch.softmax(input=s, dim=-1),
    "a dtype by position": lambda s: torch.softmax(s, -1, torch.float32),
    "method with a dtype": lambda s: s.softmax(-1, torch.float32),
    "last axis by number": lambda s: torch.softmax(s, dim=3),
}


@pytest.mark.parametrize("case", CALLS)
def test_every_way_to_call_a_softmax(case):
    q, k, v = tensors()
    with tap(Around(lambda q, k, v: CALLS[case](q @ k.mT / math.sqrt(8)) @ v), a="attention:attn") as taps:
        taps.run(q, k, v)
    assert torch.equal(taps["a"], weights(q, k))


PRODUCTS = {
    "matmul": lambda a, b: torch.matmul(input=a, other=b),
    "the other way round": lambda a, b: torch.matmul(other=b, input=a),
    "bmm": lambda a, b: torch.bmm(a.flatten(0, 1), mat2=b.flatten(0, 1)).unflatten(0, a.shape[:2]),
    "bmm by name": lambda a, b: torch.bmm(mat2=b.flatten(0, 1), input=a.flatten(0, 1)).unflatten(0, a.shape[:2]),
}


@pytest.mark.parametrize("case", PRODUCTS)
def test_every_way_to_call_a_product(case):
    product = PRODUCTS[case]
    q, k, v = tensors()

    def call(q, k, v):
        torch.matmul(torch.ones(8), k.mT)  # a vector has no queries
        return product((product(q, k.mT) / math.sqrt(8)).softmax(-1), v)

    with Taps(Around(call), {port: f"attention:{port}" for port in ("attn", "q", "k", "v")}) as taps:
        taps.run(q, k, v)
    assert torch.equal(taps["attn"], weights(q, k))
    if "bmm" in case:  # (B * H, L, D), and then not by the rows of the softmax
        assert message(taps, "q").startswith("attention:q: q is (8, 3, 8) where the model multiplies it")
    else:
        assert [torch.equal(taps[n], t) for n, t in zip("qkv", (q, k, v), strict=True)] == [True] * 3


@pytest.mark.parametrize("width", [4, 5])
def test_a_product_that_happens_to_be_as_wide_as_the_keys(width):
    """One less would look like the column of a sink."""
    projection = torch.randn(8, width)

    def call(q, k, v):
        scale = torch.matmul(q.sum(1), projection).mean()  # (B, L, width), with as many queries
        return (q @ k.mT / math.sqrt(8) + 0 * scale).softmax(-1) @ v

    q, k, v = tensors()
    with tap(Around(call), a="attention:attn", q="attention:q") as taps:
        taps.run(q, k, v)
    assert torch.equal(taps["a"], weights(q, k))
    assert torch.equal(taps["q"], q)


def test_keys_come_before_a_sink():
    """A product over all columns decides, although one that is a column short comes first."""

    def call(q, k, v):
        short = (q @ k[:, :, 1:].mT).sum()
        return (q @ k.mT / math.sqrt(8) + 0 * short).softmax(-1) @ v

    q, k, v = tensors()
    with tap(Around(call), a="attention:attn", k="attention:k") as taps:
        taps.run(q, k, v)
    assert torch.equal(taps["a"], weights(q, k))
    assert torch.equal(taps["k"], k)


BESIDE = {
    "the rows of the probabilities, and another width": lambda q, k, attention: q @ torch.ones(8, 8),
    "their width, and other rows": lambda q, k, attention: torch.ones(3, 5) @ torch.ones(5, 8),
}


@pytest.mark.parametrize("case", BESIDE)
def test_a_product_between_the_softmax_and_the_values(case):
    def call(q, k, v):
        attention = weights(q, k)
        return BESIDE[case](q, k, attention) + attention @ v

    q, k, v = tensors()
    with tap(Around(call), v="attention:v") as taps:
        taps.run(q, k, v)
    assert torch.equal(taps["v"], v)


def test_values_that_are_multiplied_first():
    """Relative positions may be mixed by the same probabilities."""
    q, k, v = tensors()
    with tap(Around(lambda q, k, v: weights(q, k) @ v + weights(q, k).detach() @ v), v="attention:v") as taps:
        taps.run(q, k, v)
    assert "saw 2" in message(taps, "v")

    def call(q, k, v):
        attention = weights(q, k)
        return attention @ v + attention @ torch.ones(5, 8)

    with tap(Around(call), v="attention:v") as taps:
        taps.run(q, k, v)
    assert torch.equal(taps["v"], v)


def test_heads_among_the_queries():
    """As where all heads share one key (gpt_bigcode): the query has no heads of its own then."""

    def call(q, k, v):
        return ((q.reshape(2, 1, 12, 8) @ k[:, :1].mT).reshape(2, 4, 3, 5) / math.sqrt(8)).softmax(-1) @ v

    q, k, v = tensors()
    with tap(Around(call), a="attention:attn", q="attention:q") as taps:
        taps.run(q, k, v)
    torch.testing.assert_close(taps["a"], weights(q, k[:, :1]))
    assert message(taps, "q").startswith("attention:q: q goes through no product that can be seen")


def changes(what):
    """An attention that writes into one of its tensors before it returns."""

    def call(q, k, v):
        q, k, v = q.clone(), k.clone(), v.clone()
        scores = q @ k.mT / math.sqrt(8)
        if what == "query before the softmax":
            q.zero_()
        attention = scores.softmax(-1)
        if what == "probabilities":
            attention.mul_(2)
        out = attention @ v
        if what == "scores":
            scores.zero_()
        if what == "values":
            v.zero_()
        return out

    return call


@pytest.mark.parametrize(
    ("what", "port"), [("probabilities", "attn"), ("scores", "scores"), ("values", "v"), ("probabilities", "v")]
)
def test_a_module_that_writes_into_its_own_tensors(what, port):
    q, k, v = tensors()
    model = Around(changes(what))
    with Taps(model, {"a": f"attention:{port}"}) as taps, Taps(model, {"a": f"attention:{port}"}, clone=True) as cloned:
        taps.run(q, k, v)
        cloned.run(q, k, v)
    expected = {"attn": weights(q, k), "scores": q @ k.mT / math.sqrt(8), "v": v}[port]
    assert torch.equal(cloned["a"], expected)
    if (what, port) == ("probabilities", "v"):
        assert torch.equal(taps["a"], expected)
    else:
        with pytest.raises(MutatedError, match=rf"^attention:{port}: the tensor of tap 'a' was changed in place"):
            taps["a"]


def test_a_query_that_is_gone_when_the_softmax_runs():
    q, k, v = tensors()
    with tap(Around(changes("query before the softmax")), a="attention:attn", q="attention:q") as taps:
        taps.run(q, k, v)
    assert torch.equal(taps["a"], weights(q, k))
    assert message(taps, "q") == (
        "attention:q: q goes through no product that can be seen; load with attn_implementation='sdpa'"
    )


def test_a_query_that_changes_after_the_kernel():
    def call(q, k, v):
        out = F.scaled_dot_product_attention(q, k, v)
        q.zero_()
        return out

    q, k, v = tensors()
    model = Around(call)
    with Taps(model, {"a": "attention:attn"}) as taps, Taps(model, {"a": "attention:attn"}, clone=True) as cloned:
        taps.run(q.clone(), k, v)
        cloned.run(q.clone(), k, v)
    torch.testing.assert_close(cloned["a"], weights(q, k))
    with pytest.raises(MutatedError, match=r"^attention:attn: the tensor of tap 'a' was changed in place"):
        taps["a"]


NESTED = "attention over nested tensors cannot be read; give the model padded ones and a mask"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("call", [F.scaled_dot_product_attention, lambda q, k, v: (q @ k.mT).softmax(-1) @ v])
def test_nested_tensors(call):
    ragged = torch.nested.nested_tensor([torch.randn(4, 3, 8), torch.randn(4, 5, 8)])
    with tap(Around(call), a="attention:attn", x="attention") as taps:
        taps.run(ragged, ragged, ragged)
    assert taps["x"].shape == (2, 4, 5, 8)
    assert message(taps, "a") == f"attention:attn: {NESTED}"


def test_a_mask_that_is_no_tensor_of_numbers():
    model = Around(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=causal_lower_right(3, 5)))
    with tap(model, a="attention:attn") as taps:
        taps.run(*tensors())
    assert message(taps, "a") == (
        "attention:attn: attention under a CausalBias cannot be read; give the mask as a tensor, or is_causal=True"
    )


class Names(nn.Module):
    """One attention module with two names."""

    def __init__(self):
        super().__init__()
        self.first = Attention(F.scaled_dot_product_attention)
        self.second = self.first

    def forward(self, *args):
        return self.second(*args)


def test_ports_of_one_module_under_two_names(hooks):
    q, k, v = tensors()
    model = Names()
    with Taps(model, {"a": "first:attn", "v": "second:v", "both": "{first,second}:q"}) as taps:
        assert hooks(model) == 2
        taps.run(q, k, v)
    torch.testing.assert_close(taps["a"], weights(q, k))
    assert taps["v"] is v
    assert [one is q for one in taps["both"]] == [True, True]


@pytest.mark.parametrize("port", ["scores", "attn", "q", "k", "v"])
def test_only_what_is_asked_for_is_kept_alive(port):
    with tap(Around(lambda q, k, v: weights(q, k) @ v), a=f"attention:{port}") as taps:
        taps.run(*tensors())
    (seen,) = taps._store.calls[taps._taps["a"][1][0].point]
    kept = dict(zip(("scores", "attn", "q", "k", "v"), seen.value.tensors(), strict=True))
    assert [name for name, tensor in kept.items() if tensor is not None] == [port]
