"""Callbacks are checked when they are attached, called in order, and named when they fail."""

import attrs
import pytest
import torch
from torch import nn

from hookbrew.errors import CallbackError, FolderError
from hookbrew.loop import EVENTS, Dispatch, State


def attach(*callbacks):
    return Dispatch([(f"c{i}", callback) for i, callback in enumerate(callbacks)])


def refused(*callbacks):
    with pytest.raises(CallbackError) as caught:
        attach(*callbacks)
    return str(caught.value)


def test_called_in_the_order_of_the_configuration():
    order = []

    class One:
        def __init__(self, name):
            self.name = name

        def step_end(self, state):
            order.append(self.name)

    attach(One("a"), One("b"), One("c")).fire("step_end", None)
    assert order == ["a", "b", "c"]


def test_a_misspelt_event():
    class Typo:
        def step_ended(self, state): ...

    assert refused(Typo()) == (
        "callback 'c0' has a method 'step_ended', which is no event; did you mean 'step_end'? "
        "(a name that begins with _ is left alone)"
    )


def test_no_event_at_all():
    class Empty:
        def _step_end(self, state): ...

    assert refused(Empty()).startswith("callback 'c0' has no method named for an event; one of: backward_end, ")


def test_a_class_instead_of_an_instance():
    class Ready:
        def step_end(self, state): ...

    assert refused(Ready) == "callback 'c0' is the class Ready; give an instance of it"


def test_wrong_arguments():
    class More:
        def step_end(self, state, batch): ...

    class None_:
        def step_end(self): ...

    assert refused(More()).startswith("callback 'c0': an event takes exactly one argument, 'state': ")
    assert refused(None_()) == "callback 'c0': step_end takes nothing; an event takes exactly one argument, 'state'"


def test_two_that_are_equal():
    @attrs.define
    class Same:
        def step_end(self, state): ...

    assert refused(Same(), Same()) == (
        "callback 'c1' is equal to one that is already attached; "
        "attach an instance once, and compare callbacks by identity (attrs: eq=False)"
    )


def test_state_methods_are_allowed():
    class Kept:
        def step_end(self, state): ...

        def state_dict(self): ...

        def load_state_dict(self, state): ...

    attach(Kept())


def test_errors_at_the_end_never_hide_the_first(caplog):
    called = []

    class Bad:
        def close(self, state):
            raise RuntimeError("again")

    class Good:
        def close(self, state):
            called.append("close")

    attach(Bad(), Good()).finish("close", None)
    assert called == ["close"]
    assert caplog.messages == ["callback 'c0' failed in event close"]


def test_ctrl_c_at_the_end_waits_for_the_others():
    called = []

    class Interrupted:
        def close(self, state):
            raise KeyboardInterrupt

    class Good:
        def close(self, state):
            called.append("close")

    with pytest.raises(KeyboardInterrupt):
        attach(Interrupted(), Good()).finish("close", None)
    assert called == ["close"]


@pytest.fixture
def state():
    """A state in the middle of a run."""
    linear = nn.Linear(2, 2)
    made = State(
        student=linear,
        teacher=None,
        extras=nn.ModuleDict(),
        device=torch.device("cpu"),
        total_steps=9,
        total_epochs=None,
        announce=print,
    )
    made.step = 4
    return made


def falling(error, *events, optional=True):
    """A callback that raises in some events, and writes down in which it was called."""

    def fall(event):
        def call(self, state):
            self.called.append(event)
            if event in events:
                raise error

        return call

    return type("Falling", (), {"called": [], "optional": optional, **{event: fall(event) for event in EVENTS}})()


@pytest.mark.parametrize("event", EVENTS)
def test_an_optional_callback_is_disabled_in_any_event(event, state, caplog):
    callback, other = falling(OSError(28, "No space\nleft"), event), falling(None, optional=False)
    dispatch = attach(callback, other)
    ending = event in ("run_abort", "close")
    for _ in range(2):
        for each in (event, "log", "close"):
            (dispatch.finish if ending or each == "close" else dispatch.fire)(each, state)
    told = "OSError: [Errno 28] No space left"
    assert caplog.messages == [
        f"callback 'c0' is disabled: it raised {told} in event {event}, step 4; the run goes on without it"
    ]
    assert state.degraded == [{"callback": "c0", "event": event, "step": 4, "error": told}]
    rest = ["close"] * 4 if event == "close" else [event, "close", "close"]
    assert callback.called == rest, "it may let go of what it holds, and no more"
    assert other.called == [event, "log", "close"] * 2, "others hear of everything"


def test_what_it_raises_while_it_is_closed_is_told_once(state, caplog):
    dispatch = attach(falling(ValueError("x"), "log", "close"))
    dispatch.fire("log", state)
    dispatch.finish("close", state)
    assert len(caplog.messages) == len(state.degraded) == 1


def test_one_of_two_that_have_a_name(state):
    first, second = falling(None), falling(ValueError(), "log")
    dispatch = Dispatch([("same", first), ("same", second)])
    dispatch.fire("log", state)
    dispatch.fire("log", state)
    assert (first.called, second.called) == (["log", "log"], ["log"])
    assert state.degraded == [{"callback": "same", "event": "log", "step": 4, "error": "ValueError"}]


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (KeyboardInterrupt(), "log"),
        (SystemExit(3), "step_end"),
        (FolderError("no folder"), "run_start"),
    ],
)
def test_what_ends_a_run_whoever_raises_it(error, event, state, caplog):
    dispatch = attach(falling(error, event))
    with pytest.raises(type(error)) as caught:
        dispatch.fire(event, state)
    assert caught.value.__notes__[0].startswith(f"raised by callback 'c0' in event {event}, step 4 (")
    assert not state.degraded
    assert not caplog.messages


@pytest.mark.parametrize("event", [event for event in EVENTS if event != "run_start"])
def test_a_mistake_that_shows_up_late_is_like_any_other_error(event, state):
    attach(falling(FolderError("no folder"), event)).fire(event, state)
    assert state.degraded[0]["error"] == "FolderError: no folder"


@pytest.mark.parametrize("event", EVENTS)
def test_one_that_does_not_say_that_it_is_optional(event, state):
    with pytest.raises(ZeroDivisionError):
        attach(falling(ZeroDivisionError(), event, optional=False)).fire(event, state)
    assert not state.degraded


def test_optional_is_checked():
    class Odd:
        optional = "yes"

        def log(self, state): ...

    class Kept(Odd):
        optional = True

        def state_dict(self): ...

        def load_state_dict(self, state): ...

    assert refused(Odd()) == "callback 'c0': optional is True or False, False without it; got 'yes'"
    assert refused(Kept()) == (
        "callback 'c0' is optional, and has a state that checkpoints keep: a run that goes on without it would not be "
        "the same; leave out one of them"
    )
