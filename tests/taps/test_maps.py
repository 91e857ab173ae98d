"""Attention that nobody has computed yet: which maps come from some samples alone, and that they are those of all."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

import hookbrew as hb
from hookbrew.taps.attention import Dense
from hookbrew.taps.maps import Map

B, H, L, S, D = 4, 2, 3, 5, 2
MASKS = [None, (L, S), (H, L, S), (1, 1, L, S), (B, 1, 1, S), (B, H, L, S)]


class Mixed(nn.Module):
    """Attention of (B, H, L, D) to itself."""

    def forward(self, x):
        return functional.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize("port", ["attn", "scores"])
@pytest.mark.parametrize("shape", MASKS, ids=str)
@pytest.mark.parametrize(("shared", "causal", "kind"), [(1, False, bool), (2, False, float), (2, True, bool)])
def test_maps_of_some_samples(port, shape, shared, causal, kind):
    q, k = torch.randn(B, H, L, D).double(), torch.randn(B, H // shared, S, D).double()
    mask = None if shape is None or causal else torch.rand(shape) < 0.7
    if mask is not None and kind is float:
        mask = torch.randn(shape).double().masked_fill(~mask, -torch.inf)
    record = Dense(q, k, None, mask, causal=causal, scale=0.3, shared=shared)
    whole, found = record.read(port), Map(record, port)
    assert (record.apart, found.shape, found.nbytes) == (True, whole.shape, whole.nbytes)
    for cut in (slice(0, 1), slice(1, 4)):
        torch.testing.assert_close(record.cut(cut).read(port), whole[cut], rtol=1e-12, atol=0)


def test_maps_of_halves_are_in_float32():
    q = torch.randn(B, H, L, D).half()
    assert Map(Dense(q, q, None, None, causal=False, scale=None), "attn").nbytes == B * H * L * L * 4


def test_maps_that_need_all_samples():
    q, k, learned = torch.randn(B, H, L, D), torch.randn(B, H, S, D), torch.randn(L, S, requires_grad=True)
    plain = Dense(q, k, None, None, causal=False, scale=None)
    others = [
        plain._replace(q=q[0], k=k[0]),
        plain._replace(k=None),
        plain._replace(k=k[:1]),
        plain._replace(mask=learned),
        plain._replace(packed=True),
    ]
    assert [record.apart for record in (plain, *others)] == [True] + [False] * len(others)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_maps_of_torchs_own_module(batched, first):
    model = nn.MultiheadAttention(4, H, batch_first=first)
    x, y = ((torch.randn(n, B, 4).transpose(0, int(first)) if batched else torch.randn(n, 4)) for n in (L, S))
    with hb.tap(model, map=":attn") as taps:
        taps.run(x, y, y)
        found, whole = taps.maps("map"), taps["map"]
    assert (found.shape, found.nbytes) == (whole.shape, whole.nbytes)
    torch.testing.assert_close(found.dense().cut(slice(0, 1)).read("attn"), whole[:1])
    learned = torch.zeros(L, S, requires_grad=True)
    with hb.tap(model, map=":attn") as taps:
        taps.run(x, y, y, attn_mask=learned)
        assert taps.maps("map") is None


def test_what_is_there_already_is_no_map():
    model, x = nn.Sequential(Mixed(), nn.Identity()), torch.randn(B, H, L, D)
    with hb.tap(model, map="0:attn", q="0:q", out="1") as taps:
        taps.run(x)
        assert taps.maps("map").shape == (B, H, L, L)
        assert (taps.maps("q"), taps.maps("out")) == (None, None)
        assert taps["map"].shape == (B, H, L, L)
        assert taps.maps("map") is None


def test_transforms_of_functions_see_whole_maps():
    model, x, found = nn.Sequential(Mixed()), torch.randn(3, B, H, L, D), []

    def run(one):
        taps.run(one)
        found.append(taps.maps("map"))
        return taps["map"]

    with hb.tap(model, map="0:attn") as taps, sdpa_kernel(SDPBackend.MATH):  # the others know no transforms
        torch.func.vmap(run)(x)
        taps.run(x[0])
        assert taps.maps("map") is not None
    assert found == [None]
