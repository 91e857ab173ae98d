"""The attention of one call against float64 arithmetic written out, for every mask and layout that torch takes."""

import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from hookbrew.errors import MutatedError, SelectorError
from hookbrew.taps import Taps, tap


class Attention(nn.Module):
    """Calls one function on queries, keys and values."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, q, k, v, **options):
        return self.call(q, k, v, **options)


class Around(nn.Module):
    def __init__(self, call=F.scaled_dot_product_attention):
        super().__init__()
        self.attention = Attention(call)

    def forward(self, *args, **options):
        return self.attention(*args, **options)


def read(q, k, v, ports=("attn", "scores"), call=F.scaled_dot_product_attention, **options):
    """The output, and what the ports give."""
    with Taps(Around(call), {port: f"attention:{port}" for port in ports}) as taps:
        out = taps.run(q, k, v, **options)
    return out, *(taps[port] for port in ports)


def written_out(q, k, *, seen=None, added=None, scale=None):
    """Scores and probabilities in float64, one query at a time; 0 where a query sees no key."""
    q, k = q.double(), k.double().repeat_interleave(q.shape[-3] // k.shape[-3], -3)
    scores = torch.einsum("...ld,...sd->...ls", q, k) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if added is not None:
        scores = scores + added.double()
    if seen is not None:
        scores = torch.where(seen, scores, -torch.inf)
    weights = torch.where(torch.isinf(scores), 0, torch.exp(scores - scores.amax(-1, keepdim=True).clamp_min(-1e30)))
    return scores, weights / weights.sum(-1, keepdim=True).clamp_min(1e-300)


def tensors(heads=4, shared=4, queries=3, keys=5):
    torch.manual_seed(0)
    return torch.randn(2, heads, queries, 8), torch.randn(2, shared, keys, 8), torch.randn(2, shared, keys, 8)


def close(seen, expected):
    torch.testing.assert_close(seen.double(), expected, atol=1e-6, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_mask(data):
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    queries, keys = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    q, k, v = tensors(queries=queries, keys=keys)
    q, k = torch.randn_like(q), torch.randn_like(k)
    kind = data.draw(st.sampled_from(["none", "bool", "added", "causal"]))
    shape = data.draw(st.sampled_from([(queries, keys), (2, 1, queries, keys), (2, 1, 1, keys), (2, 4, queries, keys)]))
    seen, options = None, {}
    if kind == "bool":
        seen = options["attn_mask"] = torch.rand(shape) < data.draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
    elif kind == "causal":
        options["is_causal"] = True
        seen = torch.arange(keys) <= torch.arange(queries)[:, None]  # both count from the first
    elif kind == "added":
        mask = torch.randn(shape).masked_fill(torch.rand(shape) < data.draw(st.sampled_from([0.0, 0.5])), -torch.inf)
        options["attn_mask"] = mask
        seen = mask > -torch.inf
    if data.draw(st.booleans()):
        options["scale"] = 0.7
    out, attn, scores = read(q, k, v, **options)
    expected = written_out(
        q, k, seen=seen, added=options["attn_mask"] if kind == "added" else None, scale=options.get("scale")
    )
    close(scores, expected[0])
    close(attn, expected[1])
    close(out, expected[1] @ v.double())  # the oracle is what torch itself computes


def test_the_smallest_number_in_a_mask_means_forbidden():
    q, k, v = tensors()
    mask = torch.zeros(3, 5)
    mask[:, 3:] = torch.finfo(torch.float32).min
    _, attn, scores = read(q, k, v, attn_mask=mask)
    assert torch.isinf(scores[..., 3:]).all()
    close(attn, written_out(q, k, seen=mask == 0)[1])


def test_heads_that_share_keys():
    q, k, v = tensors(shared=2)
    out, attn, scores, keys, values = read(q, k, v, ("attn", "scores", "k", "v"), enable_gqa=True)
    expected = written_out(q, k)
    close(scores, expected[0])
    close(attn, expected[1])
    assert keys.shape == values.shape == (2, 4, 5, 8)
    assert torch.equal(keys[:, 1], k[:, 0])
    close(out, (attn @ values).double())


def test_arguments_by_position_or_by_name():
    q, k, v = tensors()
    mask = torch.rand(3, 5) < 0.7
    sdpa = F.scaled_dot_product_attention
    by_name = read(q, k, v, call=lambda q, k, v: sdpa(query=q, key=k, value=v, attn_mask=mask))
    by_place = read(q, k, v, call=lambda q, k, v: sdpa(q, k, v, mask, 0.0, False))
    assert torch.equal(by_name[1], by_place[1])
    close(by_name[1], written_out(q, k, seen=mask)[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_computed_in_fp32(dtype):
    q, k, v = (tensor.to(dtype) for tensor in tensors())
    _, attn, scores = read(q, k, v)
    assert attn.dtype == scores.dtype == torch.float32
    expected = written_out(q, k)
    close(scores, expected[0])
    close(attn, expected[1])


def test_doubles_stay_doubles():
    q, k, v = (tensor.double() for tensor in tensors())
    assert read(q, k, v)[1].dtype == torch.float64


@pytest.mark.parametrize("kind", ["bool", "added"])
def test_a_query_without_keys_has_no_gradient_of_nan(kind):
    q, k, v = tensors()
    q.requires_grad_()
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1] = False
    mask[2, 3:] = False
    if kind == "added":
        mask = torch.zeros(3, 5).masked_fill(~mask, -torch.inf)
    _, attn, scores = read(q, k, v, attn_mask=mask)
    assert torch.equal(attn[:, :, 1], torch.zeros(2, 4, 5))
    (attn.pow(2).sum() + scores[:, :, 0].sum()).backward()
    assert torch.isfinite(q.grad).all()
    assert (q.grad[:, :, 1] == 0).all()
    assert (q.grad[:, :, 2] != 0).any()


SOFTMAXES = {
    "F.softmax": lambda x: F.softmax(x, dim=-1),
    "by position": lambda x: F.softmax(x, 3),
    "torch.softmax": lambda x: torch.softmax(x, -1),
    "method": lambda x: x.softmax(dim=-1),
    "special": lambda x: torch.special.softmax(x, dim=-1),
    "module": nn.Softmax(-1),
    "dtype": lambda x: F.softmax(x, dim=-1, dtype=torch.float64),
    "by name": lambda x: F.softmax(input=x, dim=-1),
}
PRODUCTS = {
    "@": lambda a, b: a @ b,
    "torch": torch.matmul,
    "method": lambda a, b: a.matmul(b),
    "other": lambda a, b: torch.matmul(a, other=b),
}


@pytest.mark.parametrize("softmax", SOFTMAXES)
@pytest.mark.parametrize("product", PRODUCTS)
def test_an_attention_that_is_written_out(softmax, product):
    def call(q, k, v):
        scores = PRODUCTS[product](q, k.transpose(-1, -2)) / math.sqrt(8)
        scores = torch.cat([scores[..., :4], scores[..., 4:].masked_fill(scores[..., 4:] < 9, -3e38)], -1)
        return PRODUCTS[product](F.dropout(SOFTMAXES[softmax](scores).to(v.dtype), 0.5), v)

    q, k, v = tensors()
    _, attn, scores, *given = read(q, k, v, ("attn", "scores", "q", "k", "v"), call=call)
    expected = written_out(q, k, seen=torch.arange(5) < 4)
    close(attn, expected[1])
    close(scores, expected[0])
    assert [torch.equal(a, b) for a, b in zip(given, (q, k, v), strict=True)] == [True, True, True]


def test_columns_that_are_no_keys():
    """gpt-oss: a learned score for seeing nothing stands beside the keys in the softmax, and is dropped after it."""

    def call(q, k, v):
        scores = torch.cat([q @ k.mT / math.sqrt(8), torch.ones(2, 4, 3, 1)], -1)
        return scores.softmax(-1)[..., :-1] @ v

    q, k, v = tensors()
    out, attn, scores, values = read(q, k, v, ("attn", "scores", "v"), call=call)
    assert attn.shape == scores.shape == (2, 4, 3, 5)
    assert (attn.sum(-1) < 1).all()
    torch.testing.assert_close(attn @ values, out)
    close(scores, written_out(q, k)[0])


def test_other_products_and_softmaxes():
    """A router's softmax has two dimensions, a softmax over something else another axis."""

    def call(q, k, v):
        experts = (q.flatten(0, 2) @ torch.ones(8, 3)).softmax(-1)
        elsewhere = (q @ torch.ones(8, 7)).softmax(1)
        return F.scaled_dot_product_attention(q * experts.sum() * elsewhere.mean(), k, v)

    assert read(*tensors(), call=call)[1].shape == (2, 4, 3, 5)


def test_products_that_cannot_be_seen():
    def call(q, k, v):
        return torch.einsum("bhls,bhsd->bhld", torch.einsum("bhld,bhsd->bhls", q, k).softmax(-1), v)

    q, k, v = tensors()
    with Taps(Around(call), {port: f"attention:{port}" for port in ("attn", "q", "v")}) as taps:
        taps.run(q, k, v)
    close(taps["attn"], written_out(q, k, scale=1.0)[1])
    for port in ("q", "v"):
        with pytest.raises(SelectorError) as caught:
            taps[port]
        assert str(caught.value) == (
            f"attention:{port}: {port} goes through no product that can be seen; load with attn_implementation='sdpa'"
        )


def test_a_name_that_was_imported():
    """`from torch.nn.functional import scaled_dot_product_attention` is seen, too."""
    imported = F.scaled_dot_product_attention
    q, k, v = tensors()
    close(read(q, k, v, call=lambda *args: imported(*args))[1], written_out(q, k)[1])


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch: flex_attention without torch.compile is slow
def test_a_kernel_that_cannot_be_intercepted():
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    with tap(Around(flex.flex_attention), a="attention:attn") as taps:
        taps.run(*tensors())
    with pytest.raises(SelectorError) as caught:
        taps["a"]
    assert str(caught.value) == (
        "attention:attn: expected one attention (sdpa or softmax) inside Attention, saw 0; the attention kernel is not"
        " interceptable (flash or flex attention?) or this module has none: load with attn_implementation='sdpa' or"
        " 'eager'"
    )


def test_queries_that_change_afterwards():
    class Careless(Around):
        def forward(self, q, k, v):
            out = self.attention(q, k, v)
            q.zero_()
            return out

    q, k, v = tensors()
    model = Careless()
    with Taps(model, {"a": "attention:attn"}) as taps, Taps(model, {"a": "attention:attn"}, clone=True) as cloned:
        taps.run(q.clone(), k, v)
        cloned.run(q.clone(), k, v)
    with pytest.raises(MutatedError, match=r"^attention:attn: the tensor of tap 'a' was changed in place"):
        taps["a"]
    close(cloned["a"], written_out(q, k)[1])


def test_the_model_itself_is_the_attention():
    q, k, v = tensors()
    with tap(Attention(F.scaled_dot_product_attention), a=":attn", q=":q") as taps:
        taps.run(q, k, v)
    close(taps["a"], written_out(q, k)[1])
    assert taps["q"] is q


def test_reading_twice_is_computed_once_and_follows_the_mode():
    q, k, v = tensors()
    q.requires_grad_()
    with tap(Around(), a="attention:attn") as taps:
        taps.run(q, k, v)
    with torch.no_grad():
        plain = taps["a"]
    assert not plain.requires_grad
    assert taps["a"].requires_grad
    assert taps["a"] is taps["a"]
    with taps:
        taps.run(q * 2, k, v)
    assert not torch.equal(taps["a"], plain)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch.func's own use of it
@pytest.mark.parametrize("kind", ["bool", "added", "none"])
def test_reading_inside_torch_func_and_forward_derivatives(kind):
    """The softmax goes into the memory of the scores only where neither is in the way."""
    q, k, v = tensors()
    seen = torch.tensor([[True, False, True, True, False]]).expand(3, 5)
    mask = {"bool": seen, "added": torch.zeros(3, 5).masked_fill(~seen, -torch.inf), "none": None}[kind]
    expected = torch.func.jvp(
        lambda q: written_out(q, k, seen=seen if kind != "none" else None)[1], (q,), (k[:, :, :3],)
    )

    def weights(q):
        return read(q, k, v, ("attn",), attn_mask=mask)[1]

    with sdpa_kernel(SDPBackend.MATH):  # the others have no forward derivative
        value, tangent = torch.func.jvp(weights, (q,), (k[:, :, :3],))
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(weights(forward_ad.make_dual(q, k[:, :, :3])))
        both = torch.vmap(weights)(torch.stack([k[:, :, :3], q]))
    for found in (value, dual.primal, both[1]):
        close(found, expected[0])
    for found in (tangent, dual.tangent):
        close(found, expected[1])


def test_keys_that_all_heads_share_by_broadcasting():
    q, _, _ = tensors()
    k, v = torch.randn(2, 1, 5, 8), torch.randn(2, 1, 5, 8)
    out, attn, keys, values = read(q, k, v, ("attn", "k", "v"))
    close(attn, written_out(q, k)[1])
    assert keys.shape == values.shape == (2, 4, 5, 8)
    torch.testing.assert_close(attn @ values, out)


def test_what_was_read_is_kept_instead_of_what_it_came_from():
    q, k, v = tensors()
    with Taps(Around(), {"a": "attention:attn", "q": "attention:q"}) as taps:
        taps.run(q.clone(), k.clone(), v)
    alive = [weakref.ref(taps._store.calls[read.point][0].value.k) for read in taps._taps["a"][1]]
    first = taps["a"]
    assert alive[0]() is not None  # q was not read
    assert torch.equal(taps["q"], q)
    assert alive[0]() is None
    assert taps["a"] is first
    q.requires_grad_()
    with taps:
        taps.run(q, k, v)
    with torch.no_grad():
        assert not taps["a"].requires_grad
    assert taps["a"].requires_grad
