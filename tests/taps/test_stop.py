"""A forward ends after the last tensor that anybody reads, in whatever order they are named, and leaves no trace."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hookbrew.errors import NotCalledError, SelectorError
from hookbrew.taps import Taps


def counted(model):
    """Counts the calls of every module, by path."""
    calls = {}
    for path, module in model.named_modules():
        module.register_forward_hook(lambda *_, path=path: calls.__setitem__(path, calls.get(path, 0) + 1))
    return calls


CASES = {
    "one": ({"a": "layer[2]"}, "layer.2", {"layer.2": 1}),
    "the last in the order of calls": ({"a": "layer[3]", "b": "layer[1]"}, "layer.3", {"layer.3": 1}),
    "list": ({"a": "layer[0:3]"}, "layer.2", {"layer.2": 1}),
    "input": ({"a": "layer[2]:in"}, "layer.2:in", {"layer.1": 1, "layer.2": 0}),
    "inside": ({"a": "layer[2].0"}, "layer.2.0", {"layer.2.0": 1, "layer.2.1": 0}),
    "two names": ({"a": "layer[1]", "b": "layer[1]", "c": "layer[1]:in"}, "layer.1", {"layer.1": 1}),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_after_the_last_tap(stack, case):
    model, x = stack
    texts, last, ran = CASES[case]
    calls = counted(model)
    with Taps(model, texts, stop=True) as taps, Taps(copy.deepcopy(model), texts) as whole:
        assert taps.last is None
        assert taps.run(x) is not None
        assert taps.last == last
        for step in range(3):
            calls.clear()
            assert taps.run(x + step) is None
            assert "logits" not in calls
            assert {path: calls.get(path, 0) for path in ran} == ran
            whole.run(x + step)
            for name in texts:
                pairs = zip(taps[name], whole[name], strict=True) if case == "list" else [(taps[name], whole[name])]
                assert all(torch.equal(one, other) for one, other in pairs)
    calls.clear()
    assert model(x).shape == (3, 2)
    assert calls["logits"] == 1


@torch.no_grad()
def test_only_the_model_s_own_output_comes_too_late(stack):
    model, x = stack
    for text in ("logits", ":out"):
        with pytest.raises(SelectorError) as caught:
            Taps(model, {"a": "layer[0]", "b": text}, stop=True)
        assert str(caught.value) == "tap 'b' reads the model's own output, so no forward can stop before that"
    with Taps(model, {"a": ":in", "b": "layer[0]"}, stop=True) as taps:
        taps.run(x)
        assert taps.run(x) is None
    assert taps["a"] is x


@torch.no_grad()
def test_attention(transformer, hooks):
    model, batch = transformer("bert")
    texts = {"a": "attention[1]", "q": "attention[1]:q", "h": "hidden[1]"}
    with Taps(model, texts) as whole:
        out = whole.run(**batch)
    with Taps(model, texts, stop=True) as taps:
        taps.run(**batch)
        calls = counted(copy.deepcopy(model))
        assert taps.run(**batch) is None
    assert not calls
    assert taps.last == "bert.encoder.layer.1.attention.self"
    assert all(torch.equal(taps[name], whole[name]) for name in texts)
    assert torch.equal(model(**batch).logits, out.logits)
    assert hooks(model) == 0


@torch.no_grad()
def test_a_shared_module_needs_all_its_calls(transformer):
    model, batch = transformer("albert")
    for text, length in [("hidden[*]", 5), ("**.albert_layers[0]#*", 4), ("**.albert_layers[0]#1:3", 2)]:
        with Taps(model, {"a": text}) as whole, Taps(model, {"a": text}, stop=True) as taps:
            whole.run(**batch)
            taps.run(**batch)
            assert taps.run(**batch) is None
        assert len(taps["a"]) == len(whole["a"]) == length
        assert all(torch.equal(one, other) for one, other in zip(taps["a"], whole["a"], strict=True))


class Skips(nn.Module):
    """Leaves its second layer out when it is told to."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x, skip=False):
        x = self.first(x)
        return self.head(x if skip else self.second(x))


@torch.no_grad()
def test_a_forward_with_fewer_calls_runs_to_its_end():
    model, x = Skips(), torch.randn(2, 4)
    with Taps(model, {"a": "first", "b": "second"}, stop=True) as taps:
        taps.run(x)
        assert taps.run(x) is None
        assert taps.run(x, skip=True).shape == (2, 2)
        with pytest.raises(NotCalledError):
            taps["b"]
        assert taps.run(x) is None


class Catches(Skips):
    """Goes on after any exception."""

    def forward(self, x):
        try:
            x = self.first(x)
        except Exception:
            x = torch.zeros_like(x)
        return self.head(x)


@torch.no_grad()
def test_a_model_that_catches_exceptions_runs_to_its_end():
    model, x = Catches(), torch.randn(2, 4)
    with Taps(model, {"a": "first"}, stop=True) as taps:
        taps.run(x)
        assert taps.run(x) is not None
    assert torch.equal(taps["a"], model.first(x))


def test_states_are_restored(transformer):
    model, batch = transformer("bert")
    inside = []
    model.bert.encoder.layer[0].register_forward_pre_hook(lambda *_: inside.append(torch.is_autocast_enabled("cpu")))

    class Autocast(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, **batch):
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), torch.overrides.BaseTorchFunctionMode():
                return self.inner(**batch)

    with Taps(Autocast(), {"a": "inner.bert.encoder.layer[0].attention.self:attn"}, stop=True) as taps:
        for _ in range(3):
            taps.run(**batch)
    assert inside == [True] * 3
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert torch.overrides._get_current_function_mode_stack() == []
    assert model(**batch).logits.dtype == torch.float32


def test_student_gradients(stack):
    model, x = stack
    other = copy.deepcopy(model)
    with Taps(model, {"a": "layer[3]"}, stop=True) as taps:
        taps.run(x)
        assert taps.run(x) is None
    taps["a"].pow(2).sum().backward()
    with Taps(other, {"a": "layer[3]"}) as taps:
        taps.run(x)
    taps["a"].pow(2).sum().backward()
    assert torch.equal(model.layer[0][0].weight.grad, other.layer[0][0].weight.grad)
    assert model.logits.weight.grad is None


class Checkpointed(Skips):
    def forward(self, x):
        x = checkpoint(self.first, x, use_reentrant=False)
        return self.head(checkpoint(self.second, x, use_reentrant=False))


def test_inside_a_checkpoint():
    model, x = Checkpointed(), torch.randn(2, 4, requires_grad=True)
    with Taps(model, {"a": "second:in"}, stop=True) as taps:
        taps.run(x)
        assert taps.run(x) is None
        taps["a"].sum().backward()
    assert torch.equal(x.grad, model.first.weight.sum(0).expand(2, 4))
    assert model(x).shape == (2, 2)


def test_a_compiled_model(stack):
    model, x = stack
    torch._dynamo.reset()
    fast = torch.compile(copy.deepcopy(model), backend="eager")
    with Taps(fast, {"a": "layer[0:3]"}, stop=True) as taps, torch.no_grad():
        assert taps.run(x) is not None
        for step in range(3):
            assert taps.run(x + step) is None
            assert torch.allclose(taps["a"][2], model.layer[2](model.layer[1](model.layer[0](x + step))))
        assert fast(x).shape == (3, 2)


@torch.no_grad()
def test_a_first_forward_that_skips_a_tap_does_not_tell_where_to_stop():
    model, x = Skips(), torch.randn(2, 4)
    with Taps(model, {"a": "first", "b": "second"}, stop=True) as taps:
        taps.run(x, skip=True)
        assert taps.last is None
        assert taps.run(x) is not None
        assert taps["b"].shape == (2, 4)
        assert taps.last == "second"
        assert taps.run(x) is None


@torch.no_grad()
def test_inside_the_wrappers_of_transformers(transformer):
    """They collect hidden states through hooks and a context of their own, which the stop must not leave open."""
    model, batch = transformer("llama")
    expected = copy.deepcopy(model)(**batch, output_hidden_states=True).hidden_states
    with Taps(model, {"h": "hidden[1]"}, stop=True) as taps:
        for _ in range(3):
            taps.run(**batch, output_hidden_states=True)
        assert torch.equal(taps["h"], expected[1])
    found = model(**batch, output_hidden_states=True).hidden_states
    assert [torch.equal(one, other) for one, other in zip(found, expected, strict=True)] == [True] * 5
    assert model(**batch).hidden_states is None


class Repeats(Skips):
    """Runs its first layer as often as it is told to."""

    def forward(self, x, times=1):
        for _ in range(times):
            x = self.first(x)
        return self.head(self.second(x))


@torch.no_grad()
def test_more_calls_of_one_module_do_not_stand_for_another():
    model, x = Repeats(), torch.randn(2, 4)
    with Taps(model, {"a": "first#*", "b": "second"}, stop=True) as taps:
        taps.run(x)
        assert taps.run(x, times=3) is None
        assert len(taps["a"]) == 3
        assert taps["b"].shape == (2, 4)


@torch.no_grad()
def test_attention_in_compiled_code_cannot_be_stopped_at(transformer):
    """After a stop torch skips these frames, and their hooks with them: refused instead of never called."""
    model, batch = transformer("bert")
    torch._dynamo.reset()
    fast = torch.compile(model, backend="eager")
    problem = "tap 'a' reads attention in compiled code, where no forward can stop; leave stop=True out"
    with pytest.raises(SelectorError) as caught:
        Taps(fast, {"a": "**.layer[1].attention.self:attn"}, stop=True)
    assert str(caught.value) == problem
    with pytest.raises(SelectorError) as caught, Taps(fast, {"a": "attention[1]"}, stop=True) as taps:
        taps.run(**batch)
    assert str(caught.value) == problem
    taps = Taps(fast, {"a": "**.layer[1].attention.self:attn"})
    assert taps.whole == problem
    with taps:
        assert taps.run(**batch) is not None
        assert taps.run(**batch) is not None


@torch.no_grad()
def test_switching_it_off_and_on(stack):
    model, x = stack
    with Taps(model, {"a": "layer[1]"}, stop=True) as taps:
        taps.run(x)
        assert taps.run(x) is None
        taps.stop = False
        assert taps.last is None
        assert taps.run(x) is not None
        assert taps.run(x) is not None
        taps.stop = True
        assert taps.run(x) is not None  # whole, to learn anew
        assert taps.run(x) is None
