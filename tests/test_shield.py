"""A handler of SIGCHLD that raises, as torch's does, waits for the end of what keeps a run whole."""

import os
import signal
import threading

import pytest

from hookbrew.shield import shielded


class Died(RuntimeError):
    """Raised by a handler."""


def die(number, frame):
    raise Died


def strike():
    os.kill(os.getpid(), signal.SIGCHLD)


@pytest.fixture(autouse=True)
def _handler():
    before = signal.signal(signal.SIGCHLD, die)
    yield
    signal.signal(signal.SIGCHLD, before)


def test_without_it_a_line_is_torn():
    with pytest.raises(Died):
        strike()


def test_it_comes_afterwards():
    done = []

    def work():
        with shielded():
            with shielded():
                strike()
            done.append(1)

    with pytest.raises(Died):
        work()
    assert done == [1]
    assert signal.getsignal(signal.SIGCHLD) is die


def test_what_is_raised_inside_goes_first():
    def work():
        with shielded():
            strike()
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert signal.getsignal(signal.SIGCHLD) is die


def test_nothing_is_changed_without_a_handler_or_in_another_thread():
    seen = []

    def look():
        with shielded():
            seen.append(signal.getsignal(signal.SIGCHLD))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    look()
    assert seen == [die, signal.SIG_DFL]
