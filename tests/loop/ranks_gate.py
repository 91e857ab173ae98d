"""What one of two gloo ranks does for test_gate.py; ../rank.py runs the cases."""

from types import SimpleNamespace

from hookbrew.loop import Dispatch
from hookbrew.plugin import when


class Both:
    def __init__(self):
        self.calls = []

    @when(main=True)
    def log(self, state):
        self.calls.append("log")

    @when(main=True, every=2)
    def step_end(self, state):
        self.calls.append(f"step_end {state.step}")

    def close(self, state):
        self.calls.append("close")


def called():
    callback = Both()
    dispatch = Dispatch([("both", callback)])
    for step in (1, 2):
        for event in ("step_end", "log"):
            dispatch.fire(event, SimpleNamespace(step=step, epoch=1))
    dispatch.finish("close", None)
    return callback.calls


CASES = {"called": called}
