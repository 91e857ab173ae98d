"""Scores with a graph that keeps queries and keys alone: the numbers of a matmul, its gradients, and fewer bytes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from hookbrew.taps import Taps
from hookbrew.taps.products import multiplied, products

SHAPES = {  # queries, keys, how many heads share a key
    "heads": ((2, 4, 3, 8), (2, 4, 5, 8), 1),
    "shared": ((2, 6, 3, 8), (2, 2, 5, 8), 3),
    "of all": ((2, 4, 3, 8), (2, 1, 5, 8), 4),
    "one head": ((4, 3, 8), (4, 5, 8), 1),
    "alone": ((3, 8), (5, 8), 1),
    "nobody": ((0, 4, 3, 8), (0, 4, 5, 8), 1),
    "no queries": ((2, 4, 0, 8), (2, 2, 5, 8), 2),
}
NAMES = pytest.mark.parametrize("name", SHAPES)


def drawn(name, dtype=torch.float64):
    """Queries and keys as a model lays them out, tokens before heads, and how many share a key."""
    *shapes, shared = SHAPES[name]
    torch.manual_seed(0)
    sides = [torch.randn(shape, dtype=dtype) for shape in shapes]
    if len(shapes[0]) == 4:
        sides = [side.transpose(1, 2).contiguous().transpose(1, 2) for side in sides]
    return *(side.requires_grad_() for side in sides), shared


@NAMES
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_numbers_and_gradients_of_a_matmul(name, dtype):
    q, k, shared = drawn(name, dtype)
    found, expected = (make(q, k, 0.3, shared) for make in (products, multiplied))
    assert torch.equal(found, expected)
    slope = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad(made, (q, k), slope) for made in (found, expected))
    torch.testing.assert_close(ours, theirs)


@NAMES
def test_derivatives_and_those_of_them(name):
    q, k, shared = drawn(name)
    assert torch.autograd.gradcheck(lambda q, k: products(q, k, 0.3, shared), (q, k))
    assert torch.autograd.gradgradcheck(lambda q, k: products(q, k, 0.3, shared), (q, k))


@pytest.mark.parametrize("side", [0, 1])
def test_one_side_that_is_not_trained(side):
    *sides, shared = drawn("shared")
    sides[1 - side].requires_grad_(requires_grad=False)
    found, expected = (torch.autograd.grad(f(*sides, 0.3, shared).sum(), sides[side]) for f in (products, multiplied))
    torch.testing.assert_close(found, expected)


def test_keys_that_all_samples_share():
    torch.manual_seed(0)
    q, k = torch.randn(2, 4, 3, 8, requires_grad=True), torch.randn(1, 4, 5, 8, requires_grad=True)
    products(q, k, 1.0).sum().backward()
    torch.testing.assert_close(k.grad, q.detach().sum((0, 2), keepdim=True).expand_as(k))


class Attention(nn.Module):
    """Fused attention."""

    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


@pytest.mark.parametrize("name", ["heads", "shared"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_graph_of_probabilities_keeps_no_copy_of_what_the_model_keeps(name, dtype):
    q, k, _ = drawn(name, dtype)
    kept = set()
    with Taps(Attention(), {"map": ":attn"}) as taps:
        taps.run(q, k, k)
        with saved_tensors_hooks(lambda tensor: kept.add(tensor.untyped_storage().data_ptr()), lambda _: None):
            found = taps["map"]
    assert kept == {tensor.untyped_storage().data_ptr() for tensor in (q, k, found)}
