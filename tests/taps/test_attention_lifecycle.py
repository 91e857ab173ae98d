"""Attention taps come and go: after errors, beside other modes and taps, in copies and threads, without a trace."""

import gc
import math
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from hookbrew.errors import SelectorError
from hookbrew.taps import Taps, tap


def stack_of_modes():
    return torch.overrides._get_current_function_mode_stack()


class Attention(nn.Module):
    """Attention, or what is given instead."""

    def __init__(self, call=F.scaled_dot_product_attention):
        super().__init__()
        self.call = call

    def forward(self, *args):
        return self.call(*args)


def tensors():
    torch.manual_seed(0)
    return torch.randn(2, 4, 3, 8), torch.randn(2, 4, 5, 8), torch.randn(2, 4, 5, 8)


def weights(q, k):
    """Probabilities written out."""
    return (q @ k.mT / math.sqrt(8)).softmax(-1)


class Fails(nn.Module):
    def forward(self, q, k, v):
        raise ValueError


class Retries(nn.Module):
    """Computes attention, and a second one if the module inside fails."""

    def __init__(self):
        super().__init__()
        self.inner = Fails()

    def forward(self, q, k, v):
        q = F.scaled_dot_product_attention(q, k, v)
        try:
            return self.inner(q, k, v)
        except ValueError:
            return F.scaled_dot_product_attention(q, k, v)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.outer, self.last = Retries(), Attention()

    def forward(self, q, k, v):
        return self.last(self.outer(q, k, v), k, v)


def test_an_attention_that_fails_inside_another():
    """The mode of the inner one is still on when the outer one is done, and is not taken for its own."""
    q, k, v = tensors()
    with tap(Two(), outer="outer:attn", inner="outer.inner:attn", last="last:attn") as taps:
        taps.run(q, k, v)
        assert stack_of_modes() == []
    out = Retries()(q, k, v)
    torch.testing.assert_close(taps["last"], weights(out, k))
    with pytest.raises(SelectorError) as caught:
        taps["outer"]
    assert str(caught.value) == (
        "outer:attn: expected one attention (sdpa or softmax) inside Retries, saw 2; name the modules inside that"
        " compute one each"
    )
    with pytest.raises(SelectorError, match=r"^outer\.inner:attn: module Fails was not called in this forward"):
        taps["inner"]


class Counts(TorchFunctionMode):
    """Somebody else's mode."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


class Holds(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.attention = Attention(call)

    def forward(self, args):
        return self.attention(*args)


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_beside_another_mode(where):
    mode, (q, k, v) = Counts(), tensors()

    def call(q, k, v):
        if where == "outside":
            return F.scaled_dot_product_attention(q, k, v)
        with mode:
            return F.scaled_dot_product_attention(q, k, v)

    with tap(nn.Sequential(Holds(call)), a="0.attention:attn") as taps:
        if where == "outside":
            with mode:
                taps.run((q, k, v))
        else:
            taps.run((q, k, v))
    assert mode.seen.count(F.scaled_dot_product_attention) == 1
    torch.testing.assert_close(taps["a"], weights(q, k))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_inside_the_attention(hooks, error):
    alive = []

    def call(q, k, v):
        alive.extend(map(weakref.ref, (q, k, v)))
        F.scaled_dot_product_attention(q, k, v)
        raise error

    model = nn.Sequential(Holds(call))
    taps = Taps(model, {"a": "0.attention:attn", "v": "0.attention:v", "around": "0:attn"})
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(error), taps:
            taps.run(tensors())
        assert stack_of_modes() == []
        assert taps._store.modes == []
        assert hooks(model) == 0
        assert [ref() for ref in alive] == [None] * 3
    finally:
        gc.enable()
    with pytest.raises(SelectorError, match=r"^tap 'a' has nothing to read: no forward has gone through run\(\)$"):
        taps["a"]


@pytest.mark.parametrize("clone", [False, True])
def test_no_tensor_outlives_the_taps(transformer, clone):
    model, batch = transformer("bert")
    gc.collect()
    gc.disable()
    try:
        with Taps(model, {"a": "attention[*]", "q": "attention[0]:q", "h": "hidden[*]"}, clone=clone) as taps:
            taps.run(**batch)
            seen = [call.value for calls in taps._store.calls.values() for call in calls]
            held = [t for value in seen for t in ([value] if isinstance(value, torch.Tensor) else value.tensors())]
            alive = [weakref.ref(t) for t in [*taps["a"], taps["q"], *taps["h"], *held] if t is not None]
            assert len(alive) > 16
            del seen, held
            taps.clear()
            assert all(ref() is None for ref in alive)
            taps.run(**batch)
        alive = [weakref.ref(t) for t in [*taps["a"], taps["q"], *taps["h"]]]
        del taps
        assert all(ref() is None for ref in alive)
    finally:
        gc.enable()


def test_several_taps_on_one_attention(transformer, hooks):
    model, batch = transformer("bert")
    path = "bert.encoder.layer[0].attention.self"
    first, second = Taps(model, {"it": f"{path}:attn"}), Taps(model, {"it": f"{path}:v", "around": "**.layer[0]:attn"})
    with first:
        first.run(**batch)
        expected = first["it"]
        with second:
            second.run(**batch)
            first.run(**batch)
            assert torch.equal(first["it"], expected)
            second.run(**batch)
        first.run(**batch)
    assert torch.equal(first["it"], expected)
    assert torch.equal(second["around"][0], expected)
    assert second["it"].shape == (2, 2, 7, 8)
    assert stack_of_modes() == []
    assert hooks(model) == 0


class Runs(nn.Module):
    """Runs a model inside through taps of its own, and then once more without."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.taps = inner, None

    def forward(self, **batch):
        self.taps.run(**batch)
        return self.inner(**batch)


@pytest.mark.parametrize("stop", [False, True])
@torch.no_grad()
def test_a_forward_that_is_recorded_inside_another(transformer, stop):
    model, batch = transformer("bert")
    outer, path = Runs(model), "bert.encoder.layer[1].attention.self"
    inner = Taps(model, {"a": f"{path}:attn"}, stop=stop)
    texts = {"all": f"inner.{path}#*:attn", "later": "inner.bert.encoder.layer[2].attention.self#-1:attn"}
    with inner, Taps(outer, texts) as taps:
        outer.taps = inner
        for _ in range(2):
            taps.run(**batch)
            assert stack_of_modes() == []
            assert torch.equal(taps["all"][-1], inner["a"])
        # Where the inner forward stops, the attention has not been left for the outer taps.
        assert len(taps["all"]) == (1 if stop else 2)
        later = taps["later"]
        model(**batch)
    with tap(model, a="attention[2]") as plain:
        plain.run(**batch)
    assert torch.equal(later, plain["a"])


def test_a_taps_object_in_each_thread(transformer, hooks):
    model, batch = transformer("bert")
    inputs = [(batch["input_ids"] + number) % 64 for number in range(4)]
    expected = []
    for ids in inputs:
        with torch.no_grad(), tap(model, a="attention[3]") as taps:
            taps.run(ids)
        expected.append(taps["a"])
    wrong, barrier = [], threading.Barrier(4)

    def work(number):
        with torch.no_grad(), tap(model, a="bert.encoder.layer[3].attention.self:attn") as taps:
            barrier.wait()
            for _ in range(10):
                taps.run(inputs[number])
                if not torch.equal(taps["a"], expected[number]):
                    wrong.append(number)
            barrier.wait()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert hooks(model) == 0
