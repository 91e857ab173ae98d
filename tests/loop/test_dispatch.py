"""Callbacks are checked when they are attached, called in order, and named when they fail."""

import attrs
import pytest

from hookbrew.errors import CallbackError
from hookbrew.loop import Dispatch


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
