"""Hooks come and go: after errors, in copies, in other threads, in compiled code; the model stays what it was."""

import copy
import gc
import io
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn

from hookbrew.errors import SelectorError
from hookbrew.taps import Taps, tap


def says(text, call):
    with pytest.raises(SelectorError) as caught:
        call()
    assert str(caught.value) == text


def test_taps_change_nothing(transformer):
    model, batch = transformer("bert")
    keys, plain = list(model.state_dict()), model(**batch).logits
    with tap(model, out="**.self", arg="**.self:in", logits="logits") as taps:
        assert list(model.state_dict()) == keys
        assert torch.equal(taps.run(**batch).logits, plain)
    assert torch.equal(model(**batch).logits, plain)


def test_values_are_readable_after_the_block_and_new_ones_replace_them(stack):
    model, x = stack
    with tap(model, a="layer[0]") as taps:
        taps.run(x)
        first = taps["a"]
        taps.run(x + 1)
        assert not torch.equal(taps["a"], first)
    assert torch.equal(taps["a"], model.layer[0](x + 1))


def test_only_run_is_recorded(stack):
    model, x = stack
    with tap(model, a="layer[0]") as taps:
        model(x)
        says("tap 'a' has nothing to read: no forward has gone through run()", lambda: taps["a"])
        taps.run(x)
        seen = taps["a"]
        model(x + 1)
        assert taps["a"] is seen
        taps.clear()
        says("tap 'a' has nothing to read: no forward has gone through run()", lambda: taps["a"])


def test_taps_can_be_installed_again(stack, hooks):
    model, x = stack
    taps = tap(model, a="layer[0]")
    for _ in range(2):
        with taps:
            taps.run(x)
        assert hooks(model) == 0


def test_use_without_with(stack):
    model, x = stack
    closed = "these taps are not installed: call run() inside `with tap(...) as taps:`"
    taps = tap(model, a="layer[0]")
    says(closed, lambda: taps.run(x))
    with taps:
        says("these taps are installed already; make another Taps object", taps.__enter__)
        taps.run(x)
    says(closed, lambda: taps.run(x))


def test_unknown_names(stack):
    model, x = stack
    with tap(model, hidden="layer[0]", last="layer[-1]") as taps:
        taps.run(x)
    says("no tap is named 'hiden'; there are: hidden, last", lambda: taps["hiden"])
    says("no tap is named 'x'; there are: none", lambda: Taps(model, {})["x"])


def test_any_name_will_do(stack):
    model, x = stack
    with Taps(model, {"losses[0].student": "layer[0]"}) as taps, tap(model, model="layer[0]", self="first") as named:
        taps.run(x)
        named.run(x)
    assert taps["losses[0].student"].shape == named["model"].shape == named["self"].shape


def test_several_taps_close_in_any_order(stack, hooks):
    model, x = stack
    first, second = tap(model, a="layer[0]"), tap(model, a="layer[0]")
    first.__enter__()
    second.__enter__()
    assert hooks(model) == 2
    first.__exit__(None, None, None)
    second.run(x)
    assert torch.equal(second["a"], model.layer[0](x))
    first.__enter__()
    second.__exit__(None, None, None)
    assert hooks(model) == 1
    first.run(x)
    first.__exit__(None, None, None)
    assert torch.equal(first["a"], second["a"])
    assert hooks(model) == 0


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["forward", "hook"])
def test_exceptions_leave_no_hook_and_no_tensor(stack, hooks, error, where):
    model, x = stack

    def explode(*_):
        raise error

    if where == "hook":
        model.logits.register_forward_hook(explode)
    else:
        model.logits.forward = explode
    before, dead = hooks(model), []
    model.layer[0].register_forward_hook(lambda module, args, output: dead.append(weakref.ref(output)))
    taps = tap(model, a="layer[0]", b="layer[1]:in")
    with pytest.raises(error), taps:
        taps.run(x)
    assert hooks(model) == before + 1
    assert dead[0]() is None
    says("tap 'a' has nothing to read: no forward has gone through run()", lambda: taps["a"])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_while_installing(stack, hooks, error):
    class Stubborn(nn.Linear):
        def register_forward_hook(self, *_, **__):
            raise error

    model, _ = stack
    model.logits = Stubborn(4, 2)
    taps = tap(model, a="layer[*]", b="layer[*]:in", c="logits:out")
    with pytest.raises(error):
        taps.__enter__()
    assert hooks(model) == 0
    model.logits = nn.Linear(4, 2)


def test_no_tensor_outlives_the_taps(stack):
    model, x = stack
    gc.collect()
    gc.disable()
    try:
        with tap(model, a="layer[0]", b="layer[*]:in") as taps:
            taps.run(x)
        alive = [weakref.ref(taps["a"]), weakref.ref(taps["b"][2])]
        assert all(ref() is not None for ref in alive)
        del taps
        assert all(ref() is None for ref in alive)
    finally:
        gc.enable()


def test_a_dropped_model_is_freed_with_its_taps():
    gc.collect()
    gc.disable()
    try:
        model = nn.Sequential(nn.Linear(2, 2))
        taps = tap(model, a="0").__enter__()
        alive = weakref.ref(model[0])
        del taps, model
        assert alive() is None
    finally:
        gc.enable()


class Twice(nn.Module):
    """Runs a model and a copy of it in one forward."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.copy = nn.Identity()

    def forward(self, x):
        return self.inner(x) + self.copy(x)


def reloaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def unpickled(module):
    return pickle.loads(pickle.dumps(module))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, reloaded, unpickled, copy.copy])
def test_copies_are_inert(duplicate):
    model, x = Twice(nn.Linear(3, 3)), torch.randn(2, 3)
    with tap(model, out="inner", arg="inner:in") as taps:
        taps.run(x)
        model.copy = duplicate(model.inner)
        taps.run(x)
        assert torch.equal(taps["out"], model.copy(x))
        assert taps["arg"] is x


@pytest.mark.parametrize("duplicate", [copy.deepcopy, reloaded])
def test_a_copy_of_the_whole_model_keeps_the_originals_tensors(stack, duplicate):
    model, x = stack
    with tap(model, a="layer[0]", b="layer[*]:in") as taps:
        taps.run(x)
        seen = taps["a"]
        other = duplicate(model)
        other(x + 1)
        assert taps["a"] is seen
        assert list(other.state_dict()) == list(model.state_dict())


def in_thread(call):
    """What a call gives or raises in another thread."""
    got = []

    def work():
        try:
            got.append(call())
        except BaseException as error:
            got.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return got[0]


def test_another_thread_may_not_run(stack):
    model, x = stack
    with tap(model, a="layer[0]") as taps:
        taps.run(x)
        seen = taps["a"]
        error = in_thread(lambda: taps.run(x))
        assert isinstance(error, SelectorError)
        assert str(error) == "these taps were installed by another thread; make one Taps object in each thread"
        assert taps["a"] is seen


def test_forwards_of_another_thread_are_not_recorded(stack):
    model, x = stack

    def elsewhere(*_):
        assert in_thread(lambda: model.layer[0](x)).shape == x.shape

    model.heads["self"].register_forward_pre_hook(elsewhere)
    with tap(model, a="layer[0]#*") as taps:
        taps.run(x)
    assert len(taps["a"]) == 1


def test_a_taps_object_in_each_thread(stack):
    model, _ = stack
    inputs = [torch.randn(3, 4) for _ in range(4)]
    wrong, barrier = [], threading.Barrier(4)

    def work(x):
        with tap(model, a="layer[0]:in") as taps:
            barrier.wait()
            for _ in range(50):
                taps.run(x)
                if taps["a"] is not x:
                    wrong.append(x)
            barrier.wait()

    threads = [threading.Thread(target=work, args=(x,)) for x in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_run_inside_run(stack):
    model, x = stack
    with tap(model, a="layer[0]") as taps:
        handle = model.logits.register_forward_pre_hook(lambda *_: taps.run(x))
        says("run() was called inside run(); make another Taps object for the inner forward", lambda: taps.run(x))
        handle.remove()
        handle = model.logits.register_forward_pre_hook(lambda *_: taps["a"])
        says("tap 'a' has nothing to read: no forward has gone through run()", lambda: taps.run(x))
