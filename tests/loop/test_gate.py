"""Filters and priorities: which calls are made, in which order, and what is refused."""

import types
from pathlib import Path

import pytest
import torch
from torch import nn

import hookbrew as hb
from hookbrew.errors import CallbackError
from hookbrew.loop import EVENTS, Dispatch
from hookbrew.plugin import when
from hookbrew.plugin.when import MARK


class Recorder:
    """A callback with one method, which notes (step, epoch)."""

    def __init__(self):
        self.calls = []


def recorder(event, *given):
    """A callback with the event, under one decorator for each of given."""

    def method(self, state):
        self.calls.append((state.step, state.epoch))

    for filters in given:
        method = when(**filters)(method)
    return type("Made", (Recorder,), {event: method})()


def state(step, epoch=1, evaluated=None):
    return types.SimpleNamespace(step=step, epoch=epoch, last_eval_step=evaluated)


def made(event, *given, after=0):
    """The calls of a run of 4 epochs of 3 steps that was resumed `after` this many."""
    callback = recorder(event, *given)
    dispatch = Dispatch([("c", callback)])
    for step in range(after + 1, 13):
        dispatch.fire(event, state(step, (step + 2) // 3))
    return callback.calls


def refused(event, *given):
    with pytest.raises(CallbackError) as caught:
        Dispatch([("c", recorder(event, *given))])
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ([{"every": 5}], [5, 10]),
        ([{"every": 1}], [*range(1, 13)]),
        ([{"every_epoch": 2}], [4, 5, 6, 10, 11, 12]),
        ([{"every": 2, "every_epoch": 2}], [4, 6, 10, 12]),
        ([{"every": 2}, {"every": 3}], [6, 12]),
        ([{"first": True}], [1]),
        ([{"first": True, "main": True}], [1]),
        ([{"main": True}], [*range(1, 13)]),
        ([{"main": True}, {"every": 6}], [6, 12]),
    ],
)
@pytest.mark.parametrize("event", ["step_end", "batch_ready", "log"])
def test_steps_and_a_resumed_run_has_the_same(event, given, steps):
    whole = [step for step, _ in made(event, *given)]
    assert whole == steps
    for after in (1, 5, 6, 11):
        assert [step for step, _ in made(event, *given, after=after)] == [step for step in steps if step > after]


def test_every_batch_of_a_step():
    callback = recorder("loss_end", {"first": True})
    dispatch = Dispatch([("c", callback)])
    for step in (1, 1, 2, 2):
        dispatch.fire("loss_end", state(step))
    assert callback.calls == [(1, 1), (1, 1)]


@pytest.mark.parametrize("event", ["epoch_start", "epoch_end"])
def test_epochs(event):
    assert [epoch for _, epoch in made(event, {"first": True})] == [1, 1, 1]
    assert {epoch for _, epoch in made(event, {"every_epoch": 3})} == {3}


@pytest.mark.parametrize("event", ["eval_start", "eval_batch_end", "eval_end"])
def test_the_first_evaluation_is_at_any_step(event):
    callback = recorder(event, {"first": True})
    dispatch = Dispatch([("c", callback)])
    dispatch.fire(event, state(50))
    dispatch.fire(event, state(100, evaluated=50))
    assert callback.calls == [(50, 1)]


def test_a_run_that_is_resumed_has_started_before():
    callback = recorder("run_start", {"first": True})
    dispatch = Dispatch([("c", callback)])
    dispatch.fire("run_start", state(3))
    assert callback.calls == []
    dispatch.fire("run_start", state(0, 0))
    assert callback.calls == [(0, 0)]


def test_main_is_rank_0(launched):
    ranks = launched(Path(__file__).with_name("ranks_gate.py"))
    main, other = ranks("called")
    assert main == ["log", "step_end 2", "log", "close"]
    assert other == ["close"]


def test_in_a_training():
    class Watch:
        def __init__(self):
            self.calls = []

        @when(first=True)
        def eval_start(self, state):
            self.calls.append(("eval_start", state.step))

        @when(first=True)
        def eval_end(self, state):
            self.calls.append(("eval_end", state.step))

        @when(first=True)
        def batch_ready(self, state):
            self.calls.append(("batch_ready", state.step))

        @when(every_epoch=2)
        def epoch_end(self, state):
            self.calls.append(("epoch_end", state.step))

        @when(every=3)
        def step_end(self, state):
            self.calls.append(("step_end", state.step))

    watch, data = Watch(), [{"input": torch.randn(2, 3)} for _ in range(4)]
    run = hb.Distillation(nn.Linear(3, 2), nn.Linear(3, 2), [hb.loss("kl")])
    run.fit(data, epochs=2, accumulate=2, evaluate=data, evaluate_every=2, callbacks=[watch])
    batches = 2 * [("batch_ready", 1)]
    assert watch.calls == [
        *batches,
        ("eval_start", 2),
        ("eval_end", 2),
        ("step_end", 3),
        ("epoch_end", 4),
    ]


@pytest.mark.parametrize(
    ("event", "given", "message"),
    [
        ("step_end", {"every": 0}, "every is an integer of 1 or more, got 0"),
        ("step_end", {"every": True}, "every is an integer of 1 or more, got True"),
        ("step_end", {"every": 2.0}, "every is an integer of 1 or more, got 2.0"),
        ("step_end", {"every_epoch": "2"}, "every_epoch is an integer of 1 or more, got '2'"),
        ("step_end", {"first": "yes"}, "first is True or left out, got 'yes'"),
        ("step_end", {"main": 1}, "main is True or left out, got 1"),
        ("step_end", {}, "@when without a filter; one of: every, every_epoch, first, main"),
        ("step_end", {"first": True, "every": 2}, "'first' is one time in a run; leave out every and every_epoch"),
        ("run_start", {"every": 2}, "'every' means nothing for this event; it takes first, main"),
        ("close", {"first": True}, "'first' means nothing for this event; it takes main"),
        ("epoch_end", {"every": 2}, "'every' means nothing for this event; it takes every_epoch, first, main"),
        (
            "checkpoint_saved",
            {"first": True},
            "'first' means nothing for this event; it takes every, every_epoch, main",
        ),
    ],
)
def test_refused(event, given, message):
    assert refused(event, given) == f"callback 'c', {event}: {message}"


def test_first_and_every_of_two_decorators():
    assert "leave out every" in refused("step_end", {"first": True}, {"every": 2})


def test_a_filter_on_what_is_no_event():
    class Wrong:
        def step_end(self, state):
            self._often()

        @when(every=2)
        def _often(self): ...

    with pytest.raises(CallbackError, match=r"^callback 'c': @when is for events, and '_often' is none$"):
        Dispatch([("c", Wrong())])


@pytest.mark.parametrize("event", EVENTS)
def test_main_is_for_all_events_and_filters_stay_on_the_function(event):
    callback = recorder(event, {"main": True})
    assert len(getattr(getattr(callback, event), MARK)) == 1
    Dispatch([("c", callback)]).fire(event, state(1))
    assert callback.calls == [(1, 1)]


def test_an_error_is_blamed_on_the_method_behind_its_filter():
    class Bad:
        @when(every=2)
        def step_end(self, state):
            raise RuntimeError("no")

    dispatch = Dispatch([("bad", Bad())])
    dispatch.fire("step_end", state(1))
    with pytest.raises(RuntimeError) as caught:
        dispatch.fire("step_end", state(2))
    line = Bad.step_end.__code__.co_firstlineno + 2
    (note,) = caught.value.__notes__
    assert note.startswith("raised by callback 'bad' in event step_end, step 2 (")
    assert note.endswith(f"test_gate.py:{line})")


class Named:
    def __init__(self, order, name, priority=None):
        self._order, self._name = order, name
        if priority is not None:
            self.priority = priority

    def step_end(self, state):
        self._order.append(self._name)

    def close(self, state):
        self._order.append(self._name)

    def state_dict(self):
        return {"name": self._name}

    def load_state_dict(self, state): ...


def test_priority_and_then_the_order_of_the_configuration():
    order = []
    given = [("d", 100), ("c", 50), ("b", None), ("b2", 0), ("a", -1)]
    dispatch = Dispatch([("c", Named(order, *each)) for each in given])
    dispatch.fire("step_end", None)
    dispatch.finish("close", None)
    assert order == 2 * ["a", "b", "b2", "c", "d"]


def test_priorities_do_not_change_the_names_of_states():
    dispatch = Dispatch([("c", Named([], "one", 5)), ("c", Named([], "two", -5))])
    assert dispatch.state_dict() == {"c": {"name": "one"}, "c.2": {"name": "two"}}


@pytest.mark.parametrize("priority", ["high", 1.0, True])
def test_a_priority_that_is_none(priority):
    with pytest.raises(CallbackError) as caught:
        Dispatch([("c", Named([], "c", priority))])
    assert str(caught.value) == f"callback 'c': priority is an integer, 0 without one; got {priority!r}"


def test_a_method_without_filters_is_called_directly():
    callback = recorder("step_end")
    ((_, function),) = Dispatch([("c", callback)])._table["step_end"]
    assert function == callback.step_end
