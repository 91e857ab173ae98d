"""The loop by its laws: order of events, micro-batches, determinism, nothing left behind."""

import math

import attrs
import pytest
import torch

import hookbrew as hb
from hookbrew.errors import CallbackError, ConfigError, NonFiniteError
from hookbrew.loop import EVENTS
from hookbrew.loop.update import Update

KD = (hb.loss("kd_ce"),)


@pytest.fixture
def fit(pack, tagger):
    """Train a fresh student of seed 1 and return the last state."""

    def make(loader, *, losses=KD, width=8, dropout=0.0, student=None, augments=(), **arguments):
        torch.manual_seed(1)
        student = student or tagger(width, dropout=dropout)
        teacher = tagger(12)
        arguments.setdefault("optimizer", torch.optim.SGD(student.parameters(), 0.1))
        distillation = hb.Distillation(teacher, student, losses, augments=augments, catalogue=pack)
        return distillation.fit(loader, callbacks=arguments.pop("callbacks", ()), **arguments)

    return make


def weights(state):
    return torch.cat([p.detach().flatten() for p in state.student.parameters()])


@attrs.define(eq=False)
class Recorder:
    """Keeps (event, step) for every event, through methods made for each."""

    seen: list = attrs.field(factory=list)


def record(event):
    def method(self, state):
        self.seen.append((event, state.step))

    return method


for _event in EVENTS:
    setattr(Recorder, _event, record(_event))


def test_events_come_in_the_order_of_the_drawing(fit, batches):
    recorder = Recorder()
    data = batches([3, 2], [4, 1], [2, 2])
    fit(data, epochs=1, accumulate=2, evaluate=data[:1], callbacks=[recorder, hb.callback("evaluate")])
    batch = ["batch_ready", "forward_end", "loss_end", "backward_end"]
    step = ["grads_ready", "optimizer_end", "step_end"]
    assert recorder.seen == [
        ("run_start", 0),
        ("epoch_start", 0),
        *[(event, 1) for event in ["step_start", *batch, *batch, *step, "log"]],
        *[(event, 2) for event in ["step_start", *batch, *step, "log"]],
        *[(event, 2) for event in ["eval_start", "eval_batch_end", "eval_end", "epoch_end", "run_end", "close"]],
    ]


def test_accumulated_batches_train_like_one_batch(fit, batches):
    (whole,) = batches([7, 1, 4, 2, 6, 3])
    parts = [{k: v[a:b] for k, v in whole.items()} for a, b in ((0, 1), (1, 3), (3, 6))]
    losses = [hb.loss("kd_ce"), hb.loss("hidden_mse", student="blocks[*]", teacher="blocks[*]", projection="linear")]
    together = fit([whole] * 4, epochs=1, losses=losses)
    apart = fit(parts * 4, epochs=1, accumulate=3, losses=losses)
    assert together.step == apart.step == 4
    assert torch.allclose(weights(together), weights(apart), rtol=0, atol=1e-6)


def test_the_last_group_of_an_epoch_may_be_short(fit, batches):
    state = fit(batches([3, 2], [4, 1], [2, 2]), epochs=2, accumulate=2)
    assert (state.step, state.total_steps, state.epoch, state.samples_seen) == (4, 4, 2, 12)


def test_steps_run_over_epochs_and_stop_inside_one(fit, batches):
    state = fit(batches([3, 2], [4, 1], [2, 2]), steps=4)
    assert (state.step, state.epoch, state.total_epochs) == (4, 2, None)


def test_a_run_is_a_function_of_its_seed(fit, batches):
    data = batches([3, 2], [4, 1])
    assert torch.equal(weights(fit(data, epochs=2, dropout=0.5)), weights(fit(data, epochs=2, dropout=0.5)))


def test_evaluating_changes_nothing(fit, batches):
    data = batches([3, 2], [4, 1])
    often = {"evaluate": data, "evaluate_every": 1, "log_every": 1, "callbacks": [hb.callback("evaluate")]}
    assert torch.equal(weights(fit(data, epochs=2, dropout=0.5)), weights(fit(data, epochs=2, dropout=0.5, **often)))


def test_projections_join_the_first_group_of_the_optimizer_once(fit, tagger, batches, pack):
    student, teacher = tagger(8), tagger(12)
    optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.5, weight_decay=0.3)
    loss = hb.loss("hidden_mse", student="blocks[1]", teacher="blocks[1]", projection="linear")
    distillation = hb.Distillation(teacher, student, [loss], catalogue=pack)
    data = batches([3, 2])
    distillation.fit(data, epochs=1, optimizer=optimizer)
    first = [p.detach().clone() for p in distillation.objective.extras.parameters()]
    distillation.fit(data, epochs=1, optimizer=optimizer)
    (group,) = optimizer.param_groups
    assert len(group["params"]) == len({id(p) for p in group["params"]}) == len([*student.parameters()]) + len(first)
    assert not all(map(torch.equal, first, distillation.objective.extras.parameters()))


def test_the_learning_rate_follows_its_schedule_and_comes_back(fit, tagger, batches):
    student, rates = tagger(8), []

    class Watch:
        def step_end(self, state):
            rates.append(optimizer.param_groups[0]["lr"])

    optimizer = torch.optim.SGD(student.parameters(), 0.4)
    fit(
        batches([3, 2]), steps=4, student=student, optimizer=optimizer, lr_schedule=lambda x: 1 - x, callbacks=[Watch()]
    )
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert optimizer.param_groups[0]["lr"] == 0.4


def test_a_scheduler_of_torch_is_stepped_once_a_step(fit, tagger, batches):
    student = tagger(8)
    optimizer = torch.optim.SGD(student.parameters(), 0.4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    fit(batches([3, 2]), steps=3, accumulate=2, student=student, optimizer=optimizer, lr_schedule=scheduler)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_a_row_holds_means_and_numbers_in_force(fit, batches):
    rows = []

    class Watch:
        def log(self, state):
            rows.append(state.record)

    losses = [hb.loss("kd_ce", weight={"type": "linear_decay", "base": 0.5}), hb.loss("ce", weight=2)]
    state = fit(batches([3, 2], [4, 1]), epochs=2, log_every=3, losses=losses, callbacks=[Watch()])
    assert [row["step"] for row in rows] == [1, 3, 4]
    assert state.record == {}
    assert [row["weight/kd_ce"] for row in rows] == [0.5, 0.25, 0.125]
    first = rows[0]
    assert first["loss"] == pytest.approx(0.5 * first["loss/kd_ce"] + 2 * first["loss/ce"], rel=1e-5)
    assert {"lr", "grad_norm", "samples_per_second", "epoch"} < set(first)


def test_clipping_bounds_all_trained_gradients_together(fit, batches):
    norms = []

    class Watch:
        def grads_ready(self, state):
            trained = [p for p in state.student.parameters() if p.grad is not None]
            norms.append((state.grad_norm.item(), torch.nn.utils.get_total_norm([p.grad for p in trained]).item()))

    fit(batches([3, 2]), steps=2, clip_grad_norm=1e-3, callbacks=[Watch()])
    assert all(before > 1e-3 and math.isclose(after, 1e-3, rel_tol=1e-3) for before, after in norms)


def test_a_callback_may_end_the_training(fit, batches):
    class Stop:
        def step_end(self, state):
            if state.step == 2:
                state.request_stop("enough")

    state = fit(batches([3, 2]), steps=9, callbacks=[Stop()])
    assert (state.step, state.stop_reason) == (2, "enough")


def test_a_callback_may_ask_for_an_evaluation(fit, batches):
    steps = []

    class Ask:
        def step_end(self, state):
            if state.step == 2:
                state.request_eval()

        def eval_end(self, state):
            steps.append(state.step)

    data = batches([3, 2])
    fit(data, steps=4, evaluate=data, evaluate_every=4, callbacks=[Ask()])
    assert steps == [2, 4]


def test_augments_see_numbers_of_seed_and_step_alone(fit, batches):
    data = batches([6, 5], [5, 6])
    mask = hb.augment("masking", p=0.5, mask_token=19)
    alone = fit(data, epochs=2, augments=[mask])
    torch.manual_seed(99)
    assert torch.equal(weights(alone), weights(fit(data, epochs=2, augments=[mask])))
    assert not torch.equal(weights(alone), weights(fit(data, epochs=2)))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("event", ["run_start", "batch_ready", "backward_end", "log", "eval_batch_end", "run_end"])
def test_nothing_is_left_after_an_exception(fit, tagger, batches, error, event):
    called = []

    class Fail:
        def run_abort(self, state):
            called.append(type(state.exception))

        def close(self, state):
            called.append("close")

    def fail(self, state):
        raise error("here")

    setattr(Fail, event, fail)
    student, data = tagger(8), batches([3, 2])
    student.eval()
    keys, threads = list(student.state_dict()), torch.get_num_threads()
    with pytest.raises(error) as caught:
        fit(data, steps=1, student=student, evaluate=data, threads=1, callbacks=[Fail(), hb.callback("evaluate")])
    assert any(f"raised by callback 'Fail' in event {event}, step" in note for note in caught.value.__notes__)
    assert called == [error, "close"]
    assert not student.training
    assert list(student.state_dict()) == keys
    assert torch.get_num_threads() == threads
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in student.modules())


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_is_not_finite_leaves_the_weights(fit, tagger, batches, fused):
    student = tagger(8)
    kept = {}

    class Spoil:
        def step_start(self, state):
            kept[state.step] = weights(state)

        def loss_end(self, state):
            if state.step == 3:
                state.loss = state.loss * float("nan")

    optimizer = torch.optim.AdamW(student.parameters(), 1e-2, fused=fused)
    with pytest.raises(NonFiniteError) as caught:
        fit(batches([3, 2]), steps=9, student=student, optimizer=optimizer, callbacks=[Spoil()])
    assert str(caught.value).startswith("step 3: a loss or gradient is not finite (loss/kd_ce ")
    assert "the student keeps its weights of step 2" in str(caught.value)
    assert caught.value.exit_code == 76
    assert torch.equal(torch.cat([p.detach().flatten() for p in student.parameters()]), kept[3])


def test_a_device_that_is_not_here(fit, batches):
    with pytest.raises(ConfigError, match=r"train.device: no device 'cuda:77' here: ."):
        fit(batches([3, 2]), steps=1, device="cuda:77")


def test_bf16_trains_in_autocast(fit, batches):
    seen = []

    class Watch:
        def forward_end(self, state):
            seen.append(state.student_out.dtype)

    fit(batches([3, 2]), steps=1, precision="bf16", callbacks=[Watch()])
    assert seen == [torch.bfloat16]


PROJECTED = (hb.loss("hidden_mse", student="blocks[1]", teacher="blocks[1]", projection="linear"),)


def test_a_scheduler_of_torch_moves_projections_too(fit, tagger, batches):
    student, rows = tagger(8), []

    class Watch:
        def log(self, state):
            rows.append(state.record["lr"])

    optimizer = torch.optim.SGD(student.named_parameters(), 0.4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    fit(
        batches([3, 2]),
        steps=3,
        log_every=1,
        losses=PROJECTED,
        student=student,
        optimizer=optimizer,
        lr_schedule=scheduler,
        callbacks=[Watch()],
    )
    assert rows == pytest.approx([0.4, 0.2, 0.1])
    (group,) = optimizer.param_groups
    assert len(group["params"]) == len(group["param_names"]) == len([*student.parameters()]) + 2


def refused(call):
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


def test_rates_that_would_not_move(fit, tagger, batches):
    student, data = tagger(8), batches([3, 2])
    optimizer = torch.optim.SGD(student.parameters(), 0.4)

    def attempt(rate, mine=optimizer):
        return refused(lambda: fit(data, steps=1, student=student, optimizer=mine, lr_schedule=rate))

    other = torch.optim.SGD(student.parameters(), 0.1)
    assert attempt(torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)) == (
        "lr_schedule: ReduceLROnPlateau waits for a metric, and is stepped without one; take another"
    )
    assert attempt(torch.optim.lr_scheduler.StepLR(optimizer, 1), other) == (
        "lr_schedule: this scheduler moves the rate of another optimizer: give that as optimizer="
    )
    assert attempt("linear") == (
        "lr_schedule: expected hb.schedule(...), a function of progress or a scheduler of torch; got 'linear'"
    )


def test_optimizers_that_cannot_train_the_student(fit, tagger, batches):
    student, data = tagger(8), batches([3, 2])
    others = torch.optim.SGD(tagger(8).parameters(), 0.4)
    assert refused(lambda: fit(data, steps=1, student=student, optimizer=others)) == (
        "optimizer: it holds no parameter of the student, which would not be trained"
    )
    closing = torch.optim.LBFGS(student.parameters())
    assert refused(lambda: fit(data, steps=1, student=student, optimizer=closing)) == (
        "optimizer: LBFGS computes the loss several times a step; take another"
    )


def test_no_gradient_is_left_after_an_exception(fit, tagger, batches):
    class Fail:
        def backward_end(self, state):
            raise RuntimeError("here")

    student = tagger(8)
    with pytest.raises(RuntimeError, match="here"):
        fit(batches([3, 2]), steps=1, student=student, callbacks=[Fail()])
    assert all(p.grad is None for p in student.parameters())


def test_an_event_that_does_not_exist_is_not_announced(fit, batches):
    class Typo:
        def step_end(self, state):
            state.announce("checkpoint_save")

    with pytest.raises(CallbackError) as caught:
        fit(batches([3, 2]), steps=1, callbacks=[Typo()])
    assert str(caught.value) == "there is no event 'checkpoint_save' to announce; did you mean 'checkpoint_saved'?"


def test_a_step_that_is_skipped_on_the_device_is_told_and_leaves_the_optimizer(fit, tagger, batches, monkeypatch):
    """The way of a GPU, which the fused AdamW of the CPU can go too."""
    monkeypatch.setattr(Update, "deferred", lambda self, state: True)
    student, kept = tagger(8), {}

    class Spoil:
        def step_start(self, state):
            kept[state.step] = weights(state)

        def backward_end(self, state):
            if state.step == 3:
                state.student.head.bias.grad[0] = float("inf")

    optimizer = torch.optim.AdamW(student.parameters(), 1e-2, fused=True)
    with pytest.raises(NonFiniteError, match="a loss or gradient was not finite in the steps up to 5"):
        fit(batches([3, 2]), steps=9, log_every=5, student=student, optimizer=optimizer, callbacks=[Spoil()])
    assert not torch.equal(kept[2], kept[3])
    assert torch.equal(kept[3], kept[4])
    assert not torch.equal(kept[4], kept[5])
    assert not hasattr(optimizer, "found_inf")


def test_a_second_training_on_another_device_takes_everything_along(tagger, batches, pack):
    run = hb.Distillation(tagger(12), tagger(8), PROJECTED, catalogue=pack)
    run.fit(batches([3, 2]), steps=1)
    moves = []
    run.objective.extras.to = moves.append
    run.fit(batches([3, 2]), steps=1, device="cpu")
    assert moves == [torch.device("cpu")]


def test_gradients_from_before_do_not_count(fit, tagger, batches):
    data, student, spoilt = batches([3, 2]), tagger(8), tagger(8)
    spoilt.load_state_dict(student.state_dict())
    for p in spoilt.parameters():
        p.grad = torch.ones_like(p)
    assert torch.equal(weights(fit(data, steps=1, student=student)), weights(fit(data, steps=1, student=spoilt)))


def test_modes_threads_and_precision_of_a_run(fit, tagger, batches):
    seen = set()

    class Watch:
        def forward_end(self, state):
            seen.add(("train", state.student.training, torch.is_grad_enabled(), torch.get_num_threads()))

        def eval_start(self, state):
            assert state.metrics == {}

        def eval_batch_end(self, state):
            seen.add(("eval", state.student.training, torch.is_grad_enabled(), state.logits.dtype))

        def eval_end(self, state):
            state.metrics["old"] = 1.0

    data, student = batches([3, 2]), tagger(8).eval()
    watch = {"callbacks": [Watch()], "threads": torch.get_num_threads() + 1, "precision": "bf16"}
    fit(data, epochs=2, student=student, evaluate=data, **watch)
    assert seen == {
        ("train", True, True, torch.get_num_threads() + 1),
        ("eval", False, False, torch.bfloat16),
    }


@pytest.mark.parametrize(("every", "expected"), [(None, [2, 4]), (3, [3, 4]), (2, [2, 4])])
def test_when_an_evaluation_is_due(fit, batches, every, expected):
    steps = []

    class Watch:
        def step_end(self, state):
            if every is None and state.step == 2:
                state.request_eval()

        def eval_end(self, state):
            steps.append(state.step)

    data = batches([3, 2], [4, 1])
    fit(data, epochs=2, evaluate=data, evaluate_every=every, callbacks=[Watch()])
    assert steps == expected
