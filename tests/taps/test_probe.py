"""One forward watched: the order of calls, what is attention and whose it is, and that nothing is left behind."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hookbrew.taps.probe import KERNEL, probe

X = torch.randn(2, 3, 4)


class Calls(nn.Module):
    """Calls its function on the input, then its children one after the other."""

    def __init__(self, function=None, **inside):
        super().__init__()
        self.function = function
        for name, child in inside.items():
            self.add_module(name, child)

    def forward(self, x):
        if self.function is not None:
            self.function(x)
        for child in self._modules.values():
            child(x)
        return x


def sdpa(x):
    F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])


def scores(x):
    torch.softmax(x[:, None], -1)


def router(x):
    x.softmax(-1)


def attentive(model, x=X):
    """How often each module computed attention itself, by path; those that never did left out."""
    seen = probe(model, lambda: model(x))
    found = {path: [call.attentions for call in seen.of(module)] for path, module in model.named_modules()}
    return {path: counts for path, counts in found.items() if any(counts)}


def test_the_order_of_calls():
    model = Calls(a=Calls(b=nn.Identity()), c=nn.Identity())
    model.again = model.a
    paths = {module: path for path, module in model.named_modules()}
    seen = probe(model, lambda: model(X))
    assert [(paths[call.module], call.number, call.left) for call in seen.calls] == [
        ("", 0, 5),
        ("a", 0, 1),
        ("a.b", 0, 0),
        ("c", 0, 2),
        ("a", 1, 4),
        ("a.b", 1, 3),
    ]
    assert [paths[around.module] for around in seen.calls[-1].upward()] == ["a", ""]
    assert [call.number for call in seen.of(model.a)] == [0, 1]
    assert [call.began for call in seen.calls] == list(range(6))
    assert [call.left for call in sorted(seen.calls, key=lambda call: call.left)] == list(range(6))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.softmax(x, dim=-1),
        lambda x: F.softmax(x, 2, dtype=torch.float64),
        lambda x: torch.softmax(x, 2),
        lambda x: torch.softmax(input=x, dim=-1),
        lambda x: x.softmax(-1),
        lambda x: torch.Tensor.softmax(x, dim=-1),
        lambda x: torch.special.softmax(x, -1),
        sdpa,
    ],
)
def test_what_is_attention(function):
    assert attentive(Calls(a=Calls(function))) == {"a": [1]}


@pytest.mark.parametrize("function", [lambda x: x[0].softmax(-1), lambda x: x.softmax(1), lambda x: x.log_softmax(-1)])
def test_what_is_not(function):
    assert attentive(Calls(a=Calls(function))) == {}


def test_softmax_modules_belong_to_the_module_around():
    assert attentive(Calls(a=Calls(b=nn.Softmax(-1)))) == {"a": [1]}
    assert attentive(nn.Softmax(-1)) == {"": [1]}


@pytest.mark.parametrize("train", [True, False])
def test_torchs_own_attention_is_one(train):
    model = nn.MultiheadAttention(4, 2, batch_first=True).train(train)
    seen = probe(model, lambda: model(X, X, X))
    assert [call.attentions for call in seen.of(model)] == [1]
    assert seen.of(model)[0].signs == [KERNEL]


def test_a_softmax_beside_a_kernel_in_one_module():
    assert attentive(Calls(lambda x: (sdpa(x), scores(x)))) == {"": [1]}


def test_two_attentions_in_one_module():
    model = Calls(lambda x: (sdpa(x), sdpa(x)))
    assert attentive(model) == {"": [2]}
    assert probe(model, lambda: model(X)).ports(model) == ()


@pytest.mark.parametrize("attention", [sdpa, scores])
def test_a_router_beside_attention(attention):
    """The router of a mixture of experts is a softmax over (B, L, experts), as attention with merged heads is."""
    block = Calls(attention=Calls(attention), experts=Calls(router=Calls(router)))
    assert attentive(Calls(a=block)) == {"a.attention": [1]}
    assert attentive(Calls(a=Calls(one=Calls(router), two=Calls(router)))) == {"a.one": [1], "a.two": [1]}


def test_a_softmax_around_attention():
    """Probabilities over classes at the end of a model."""
    assert attentive(Calls(scores, a=Calls(scores))) == {"a": [1]}
    assert attentive(Calls(sdpa, a=Calls(sdpa))) == {"": [1], "a": [1]}


def test_two_towers_of_different_kinds():
    towers = {name: Calls(one=Calls(function), two=Calls(function)) for name, function in (("v", sdpa), ("t", scores))}
    assert set(attentive(Calls(**towers))) == {"v.one", "v.two", "t.one", "t.two"}


def test_ports():
    model = Calls(a=Calls(sdpa), b=nn.Identity())
    seen = probe(model, lambda: model(X))
    assert seen.ports(model.a) == ("attn", "scores", "q", "k", "v")
    assert seen.ports(model) == seen.ports(model.b) == seen.ports(nn.Identity()) == ()
    assert seen.attentions(seen.calls[0]) == seen.attentions(seen.of(model.a)[0]) == seen.of(model.a)
    assert seen.attentions(seen.of(model.b)[0]) == []


def test_sizes_and_picks():
    class Model(nn.Module):
        def forward(self, x):
            return {"last_hidden_state": x, "other": 3}

    model = nn.Sequential(Model())
    seen = probe(model, lambda: model(X))
    assert [(call.picked, call.size) for call in seen.calls] == [(".last_hidden_state", (2, 3, 4))] * 2
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    (call,) = probe(attention, lambda: attention(X, X, X)).calls
    assert (call.picked, call.size, call.shape) == ("[0]", (2, 3, 4), "((2, 3, 4), (2, 3, 3))")
    model = Calls(lambda x: x)
    assert probe(model, lambda: model(None)).calls[0].size == ()


def test_an_exception_that_the_model_catches():
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.bad = Calls(inner=nn.Linear(99, 1))
            self.good = Calls(sdpa)

        def forward(self, x):
            try:
                self.bad(x)
            except RuntimeError:
                return self.good(x)

    model = nn.Sequential(Careful(), nn.Identity())
    seen = probe(model, lambda: model(X))
    assert seen.of(model[0].bad)[0].left == seen.of(model[0].bad.inner)[0].left == -1
    assert seen.shapes(model[0].bad) == ()
    assert seen.of(model[1])[0].parent is seen.calls[0]
    assert seen.attentions(seen.of(model[0])[0]) == seen.of(model[0].good)


def test_the_fast_path_of_torch_stays_off(torch_encoder):
    """It packs a padded batch into nested tensors, which have no shape."""
    model, x = torch_encoder
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    seen = probe(model, lambda: model(x, src_key_padding_mask=padding))
    assert {seen.shapes(layer) for layer in model.layers} == {("(2, 5, 8)",)}
    assert [call.attentions for layer in model.layers for call in seen.of(layer.self_attn)] == [1, 1, 1]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_behind(cnn, hooks, error):
    model, _ = cnn
    model.train()
    model.stage.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()

    def run():
        torch.rand(3)
        assert not torch.is_grad_enabled()
        assert hooks(model) == 2 * len(list(model.modules()))
        assert torch._C._len_torch_function_stack() == 1
        raise error

    with pytest.raises(error):
        probe(model, run)
    assert torch.is_grad_enabled()
    assert hooks(model) == 0
    assert torch._C._len_torch_function_stack() == 0
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_outputs_are_those_of_the_model_itself(transformer):
    model, batch = transformer("llama")
    outputs = []
    probe(model, lambda: outputs.append(model(**batch).logits))
    with torch.no_grad():
        assert torch.equal(outputs[0], model(**batch).logits)


def test_softmax_outside_of_the_model():
    model = Calls()
    seen = probe(model, lambda: (scores(X), model(X)))
    assert [call.attentions for call in seen.calls] == [0]


def test_other_threads_that_run_the_model():
    model = Calls(a=nn.Identity())

    def run():
        thread = threading.Thread(target=model, args=(X,))
        thread.start()
        thread.join()
        return model(X)

    assert len(probe(model, run).calls) == 2


def test_a_compiled_model(torch_encoder):
    model, x = torch_encoder
    compiled = torch.compile(model, backend="eager")
    first = probe(compiled, lambda: compiled(x))
    with torch.no_grad():
        compiled(x)
    again = probe(compiled, lambda: compiled(x))
    for seen in (first, again):
        assert [call.attentions for layer in model.layers for call in seen.of(layer.self_attn)] == [1, 1, 1]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
def test_a_script_module_has_no_hooks():
    model = nn.Sequential(torch.jit.script(nn.Linear(4, 4)), nn.Tanh())
    seen = probe(model, lambda: model(X))
    assert [len(seen.of(module)) for module in model] == [0, 1]


def test_probes_of_one_model_in_two_threads():
    """The second would take the flags of the first, which are those of evaluation, for the model's own."""
    model, x = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train(), torch.ones(1, 2)
    ended, order = threading.Event(), []

    def second():
        probe(model, lambda: (order.append("second"), ended.wait(5), model(x)))

    thread = threading.Thread(target=second)

    def first():
        thread.start()
        thread.join(0.2)  # without the lock, the second begins here
        order.append("first")
        model(x)

    probe(model, first)
    ended.set()
    thread.join()
    assert order == ["first", "second"]
    assert all(module.training for module in model.modules())
    assert len(probe(model, lambda: probe(model, lambda: model(x)) and model(x)).calls) == 6
