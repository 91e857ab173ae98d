"""One query in the output: the heads of a decoding step, or a module that has several queries and gives one row."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hookbrew.taps import tap


@pytest.mark.parametrize("length", [1, 2, 3])
@torch.no_grad()
def test_as_many_tokens_as_heads_that_share_a_key(transformer, length):
    """Two heads share a key, and in the second case there are two tokens, which are no heads."""
    model, batch = transformer("llama")
    ids = batch["input_ids"][:, :length]
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with tap(model, a="model.layers[0].self_attn:attn", q="model.layers[0].self_attn:q") as taps:
        taps.run(ids)
    expected = eager(ids, output_attentions=True).attentions[0]
    torch.testing.assert_close(taps["a"], expected)
    assert taps["q"].shape == (2, 2, length, 8)


class Pool(nn.Module):
    """Three queries of its own, of which the mean is the output."""

    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 4, 3, 2))

    def forward(self, x):
        heads = x.unflatten(-1, (4, 2)).transpose(1, 2)
        return F.scaled_dot_product_attention(self.query.expand(len(x), -1, -1, -1), heads, heads).mean(1)[:, :1]


@torch.no_grad()
def test_queries_of_a_pool_are_no_heads():
    model, x = nn.Sequential(Pool()), torch.randn(2, 5, 8)
    with tap(model, a="0:attn", out="0") as taps:
        taps.run(x)
    assert taps["out"].shape == (2, 1, 2)
    assert taps["a"].shape == (2, 4, 3, 5)
