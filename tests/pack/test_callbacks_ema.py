"""The average of the student's weights: what it is, who sees it, and that the training does not."""

import io
import itertools

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import hookbrew as hb
from hookbrew.errors import CallbackError
from hookbrew.loop import Dispatch, State
from hookbrew_plugins.callbacks.ema import EMA


class Net(nn.Module):
    """A head that shares its weight with a layer, beside statistics of batches."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.relu(self.norm(self.first(x))))


def data(number=4):
    generator = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(6, 4, generator=generator), "labels": torch.arange(6) % 4} for _ in range(number)]


def weights(student):
    return {name: value.detach().clone() for name, value in student.state_dict().items()}


def diary(*events):
    """A callback that keeps the student's weights at these events, `seen[event][step]`: the last of each step."""

    def noting(event):
        def note(self, state):
            self.seen[event][state.step] = weights(state.student)

        return note

    made = type("Diary", (), {event: noting(event) for event in events})()
    made.seen = {event: {} for event in events}
    return made


def fit(*callbacks, student=None, **arguments):
    torch.manual_seed(0)
    student = Net() if student is None else student
    run = hb.Distillation(None, student, [hb.loss("ce")])
    optimizer = torch.optim.SGD(student.parameters(), 0.3, momentum=0.9)
    arguments = {"epochs": 3, "evaluate": data(2), "evaluate_every": 3, **arguments}
    return run.fit(data(), optimizer=optimizer, callbacks=callbacks, **arguments)


def averaged(first, rows, decay, warmup):
    """The definition in float64."""
    average = {name: value.double() for name, value in first.items()}
    for step, row in enumerate(rows, 1):
        now = min(decay, (1 + step) / (10 + step)) if warmup else decay
        average = {name: now * average[name] + (1 - now) * row[name].double() for name in average}
    return average


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


BUFFERS = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_the_student_becomes_the_average_of_its_weights(decay, warmup):
    kept = diary("run_start", "optimizer_end")
    state = fit(kept, hb.callback("ema", decay=decay, warmup=warmup))
    rows = kept.seen["optimizer_end"]
    expected = averaged(kept.seen["run_start"][0], rows.values(), decay, warmup)
    found = weights(state.student)
    assert len(rows) == 12
    for name in found.keys() - BUFFERS:
        torch.testing.assert_close(found[name], expected[name].float(), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(found[name], rows[12][name]) for name in BUFFERS), "buffers are the student's own"
    assert decay == 0.0 or not torch.allclose(found["first.weight"], rows[12]["first.weight"])
    assert state.student.first.weight is state.student.second.weight


@pytest.mark.parametrize("evaluate", [True, False])
def test_the_training_is_the_same_without_it(evaluate):
    one, other = diary("step_end", "forward_end"), diary("step_end", "forward_end")
    fit(hb.callback("ema", evaluate=evaluate), one)
    fit(other)
    for event in one.seen:
        assert all(same(one.seen[event][step], other.seen[event][step]) for step in range(1, 13))


@pytest.mark.parametrize("evaluate", [True, False])
def test_evaluations_are_of_the_average(evaluate):
    ema = EMA(evaluate=evaluate).build()
    events = ("eval_batch_end", "eval_end")
    kept = diary(*events)
    plain = diary("step_end")
    averages = {}

    class Look:
        def optimizer_end(self, state):
            averages[state.step] = {name: value.clone() for name, value in ema.state_dict()["average"].items()}

    fit(ema, Look(), kept, plain)
    for event, step in itertools.product(events, (3, 6, 9, 12)):
        own = {name: value for name, value in plain.seen["step_end"][step].items() if name in averages[step]}
        found = {name: value for name, value in kept.seen[event][step].items() if name in averages[step]}
        assert same(found, averages[step] if evaluate else own)
        assert not same(found, own if evaluate else averages[step])


OPTIONS = {"best": {"metric": "loss"}, "evaluate": {"metrics": ["loss"]}}
ORDERS = [
    order
    for order in itertools.permutations(["ema", "evaluate", "best", "weights"])
    if order.index("evaluate") < order.index("best")
]


@pytest.mark.parametrize("length", [{"epochs": 3}, {"epochs": None, "steps": 11}])
@pytest.mark.parametrize("every", [3, None])
def test_best_and_final_are_of_the_average_in_any_order(tmp_path, every, length):
    found = []
    for number, order in enumerate(ORDERS):
        callbacks = [hb.callback(name, **OPTIONS.get(name, {})) for name in order]
        state = fit(*callbacks, output=tmp_path / str(number), evaluate_every=every, **length)
        paths = [tmp_path / f"{number}/{folder}/student.safetensors" for folder in ("best", "final")]
        found.append([load_file(path) for path in paths])
        assert all(torch.equal(weights(state.student)[name], value) for name, value in found[-1][1].items())
    assert len(found) == 12
    assert all(same(best, found[0][0]) and same(final, found[0][1]) for best, final in found)


@pytest.mark.parametrize("first", [True, False])
def test_checkpoints_are_of_the_students_own_weights(first):
    """And what comes after one sees what it saw before, at the end of the training too."""
    saved, after = {}, {}

    def save(self, state):
        before = weights(state.student)
        state.announce("checkpoint_saving")
        saved[state.step] = weights(state.student)
        state.announce("checkpoint_saved" if state.step % 2 else "checkpoint_failed")
        after[state.step] = same(weights(state.student), before)

    saving = type("Saving", (), dict.fromkeys(("step_end", "eval_end", "epoch_end"), save))()
    plain = diary("step_end")
    fit(*([saving, hb.callback("ema")] if first else [hb.callback("ema"), saving]), plain)
    assert all(same(saved[step], plain.seen["step_end"][step]) for step in range(1, 13))
    assert all(after.values())
    assert len(after) == 12


@pytest.mark.parametrize("event", ["eval_batch_end", "eval_end", "epoch_end", "step_start", "run_end"])
@pytest.mark.parametrize("first", [True, False])
def test_an_abort_leaves_the_students_own_weights(event, first):
    def fall(self, state):
        if state.step >= 6:
            raise RuntimeError("fell")

    falling = type("Falling", (), {event: fall})()
    plain, student = diary("step_end", "run_abort"), Net()
    callbacks = [falling, hb.callback("ema")] if first else [hb.callback("ema"), falling]
    with pytest.raises(RuntimeError, match="fell"):
        fit(*callbacks, plain, student=student)
    last, seen = plain.seen["step_end"][max(plain.seen["step_end"])], [*plain.seen["run_abort"].values()]
    assert same(weights(student), *seen), "and whoever keeps them then"
    # behind its run_end the student is the average for good
    assert same(weights(student), last) == (first or event != "run_end")


def test_it_needs_no_evaluation():
    plain = diary("step_end")
    state = fit(plain, hb.callback("ema"), evaluate=None, evaluate_every=None)
    assert not torch.equal(state.student.first.weight, plain.seen["step_end"][12]["first.weight"])


def test_small_changes_of_half_precision_add_up():
    """A change of 0.001 parts is below the steps of bf16: only fp32 keeps it."""
    student = Net().bfloat16()
    state = moved(student, step=1)
    ema = EMA(decay=0.999, warmup=False).build()
    ema.run_start(state)
    with torch.no_grad():
        student.first.weight.fill_(1.0)
        before = ema.state_dict()["average"]["first.weight"].clone()
    for _ in range(1000):
        ema.optimizer_end(state)
    average = ema.state_dict()["average"]["first.weight"]
    assert average.dtype == torch.float32
    torch.testing.assert_close(average, 1 + (before - 1) * 0.999**1000, rtol=1e-4, atol=1e-4)
    ema.run_end(state)
    assert student.first.weight.dtype == torch.bfloat16
    assert torch.equal(student.first.weight, average.bfloat16())


def moved(student, step=0, norm=1.0):
    """The state of a training that has come to a step."""
    state = State(
        student=student,
        teacher=None,
        extras=nn.ModuleDict(),
        device=torch.device("cpu"),
        total_steps=100,
        total_epochs=None,
        announce=print,
    )
    state.step, state.grad_norm = step, norm * torch.ones(())
    return state


@pytest.mark.parametrize("norm", [float("inf"), float("nan")])
def test_a_skipped_update_does_not_count(norm):
    student = Net()
    ema = EMA(decay=0.5).build()
    ema.run_start(moved(student))
    with torch.no_grad():
        student.first.weight += 1
    before = {name: value.clone() for name, value in ema.state_dict()["average"].items()}
    ema.optimizer_end(moved(student, 1, norm))
    assert same(ema.state_dict()["average"], before)
    ema.optimizer_end(moved(student, 2))
    assert not same(ema.state_dict()["average"], before)


def test_no_step_waits_for_the_device():
    """Fake tensors have no values: whatever asks for one raises."""
    with FakeTensorMode():
        student = Net()
        ema, state = EMA().build(), moved(student, 1)
        with pytest.raises(torch._subclasses.fake_tensor.DataDependentOutputException):
            state.grad_norm.item()
        for event in ("run_start", "step_start", "optimizer_end", "eval_start", "epoch_end", "step_start", "run_end"):
            getattr(ema, event)(state)


def test_shared_parameters_are_averaged_once():
    ema = EMA().build()
    ema.run_start(moved(Net()))
    assert [*ema.state_dict()["average"]] == ["first.weight", "first.bias", "norm.weight", "norm.bias"]


def trained(student, callbacks, state, steps):
    """Steps by hand, with evaluations between them, as the loop fires them; (B, 4) inputs that the step tells."""
    dispatch = Dispatch([("ema", callback) for callback in callbacks])
    dispatch.fire("run_start", state)
    for step in steps:
        state.step = step
        dispatch.fire("step_start", state)
        generator = torch.Generator().manual_seed(step)
        student.zero_grad()
        student(torch.randn(6, 4, generator=generator)).square().mean().backward()
        with torch.no_grad():
            for parameter in student.parameters():
                parameter -= 0.3 * parameter.grad
        dispatch.fire("optimizer_end", state)
        dispatch.fire("step_end", state)
        if step % 2 == 0:
            dispatch.fire("eval_start", state)
            dispatch.fire("eval_end", state)
    return dispatch


@pytest.mark.parametrize("cut", [1, 4, 7])
def test_a_resumed_average_is_the_same_bit_for_bit(cut):
    torch.manual_seed(0)
    start = Net().bfloat16().float()
    whole, parts = Net(), Net()
    whole.load_state_dict(start.state_dict())
    parts.load_state_dict(start.state_dict())
    trained(whole, [EMA().build()], (state := moved(whole)), range(1, 11)).fire("run_end", state)
    ema = EMA().build()
    dispatch = trained(parts, [ema], (state := moved(parts)), range(1, cut + 1))
    dispatch.fire("checkpoint_saving", state)
    buffer = io.BytesIO()
    torch.save({"student": parts.state_dict(), "ema": ema.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    resumed, fresh = Net(), EMA().build()
    resumed.load_state_dict(saved["student"])
    fresh.load_state_dict(saved["ema"])
    trained(resumed, [fresh], (state := moved(resumed, cut)), range(cut + 1, 11)).fire("run_end", state)
    assert same(weights(resumed), weights(whole))
    assert same(fresh.state_dict()["average"], {n: p.detach() for n, p in resumed.named_parameters()})


def test_the_average_of_another_student():
    ema = EMA().build()
    ema.load_state_dict({"average": {**dict(Net().named_parameters()), "norm.bias": torch.zeros(5)}})
    with pytest.raises(CallbackError) as caught:
        ema.run_start(moved(Net()))
    text = "callback 'ema': the average is of another student: "
    assert str(caught.value) == f"{text}'norm.bias' is (5,) in it, and (4,) in the student"
    ema.load_state_dict({"average": {}})
    with pytest.raises(CallbackError) as caught:
        ema.run_start(moved(Net()))
    assert str(caught.value) == f"{text}'first.weight' is not there in it, and (4, 4) in the student"


def test_a_second_run_begins_anew():
    ema = EMA(decay=0.9, warmup=False).build()
    first, second = diary("step_end"), diary("run_start", "optimizer_end")
    ema.load_state_dict({"average": dict(Net().named_parameters())})
    fit(first, ema)
    state = fit(second, ema)
    average = averaged(second.seen["run_start"][0], second.seen["optimizer_end"].values(), 0.9, warmup=False)
    torch.testing.assert_close(state.student.first.weight.double(), average["first.weight"], rtol=1e-5, atol=1e-6)
