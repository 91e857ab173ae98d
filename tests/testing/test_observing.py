"""check_callback runs a training with a callback and without it: what is no mere observer is caught, by name."""

from __future__ import annotations

import os
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hookbrew.testing import check_callback
from hookbrew.testing.diary import END, kept


def callback(**events):
    """Options of a callback that has these events, each a function of the state."""

    def method(act):
        def event(self, state):
            act(state)

        return event

    return SimpleNamespace(build=type("Doing", (), {name: method(act) for name, act in events.items()}))


def shift(state):
    """Move a weight of the student."""
    with torch.no_grad():
        next(state.student.parameters()).add_(1e-6)


def halve(state):
    """Shrink a gradient."""
    next(state.student.parameters()).grad.mul_(0.5)


def spoil(state):
    """Change the batch in place."""
    state.batch["input"][0] += 1


def replace(state):
    """Give the callbacks that come later another batch."""
    state.batch = {}


def freeze(state):
    next(state.student.parameters()).requires_grad_(False)


def rewrite(state):
    state.record["loss"] = 0.0


def hook(state):
    state.student.register_forward_hook(lambda module, args, output: None)


def advance(state):
    state.samples_seen += 1


def fall(state):
    raise RuntimeError("it fell")


def request(state):
    if state.step == 2:
        state.request_stop("enough")


BUGS = [
    ({"optimizer_end": shift}, "weights_untouched", "student.0.weight is another one at optimizer_end of step 1"),
    ({"eval_end": shift}, "weights_untouched", "student.0.weight is another one at eval_end of step 3"),
    ({"run_end": shift}, "weights_untouched", "student.0.weight is another one at run_end of step 6"),
    ({"grads_ready": halve}, "weights_untouched", "the gradient of student.0.weight is another one at grads_ready of "),
    ({"batch_ready": spoil}, "weights_untouched", "batch['input'] is another one at batch_ready of step 1"),
    ({"batch_ready": replace}, "weights_untouched", "batch['input'] is another one at batch_ready of step 1"),
    ({"log": lambda state: torch.rand(1)}, "random_untouched", "torch is another one at log of step 1"),
    ({"log": lambda state: random.random()}, "random_untouched", "Python is another one at log of step 1"),
    ({"log": lambda state: np.random.rand()}, "random_untouched", "NumPy is another one at log of step 1"),
    ({"step_end": lambda state: state.student.eval()}, "models_untouched", "student.training is another one at step_"),
    ({"close": lambda state: len(state.step)}, "survives_abort", "callback 'Doing' failed in event close: TypeError"),
    ({"eval_end": lambda state: state.student.train()}, "models_untouched", "student.training is another one at eval"),
    ({"run_end": freeze}, "models_untouched", "student.0.weight.requires_grad is another one at run_end of step 6"),
    ({"run_start": hook}, "models_untouched", "student._forward_hooks is another one at the end"),
    ({"step_end": advance}, "state_untouched", "samples_seen is another one at step_end of step 1"),
    ({"log": rewrite}, "state_untouched", "record['loss'] is another one at log of step 1"),
    ({"step_end": request}, "asks_nothing", "it asks for a stop: enough"),
    ({"step_end": lambda state: state.request_eval()}, "asks_nothing", "with it, eval_start comes at step 1 and not s"),
    ({"run_abort": fall}, "survives_abort", "callback 'Doing' failed in event run_abort: RuntimeError: it fell"),
]


@pytest.mark.parametrize(("events", "law", "message"), BUGS, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_no_observer(events, law, message):
    found = check_callback.failures(callback(**events))
    said = found[law].removeprefix(f"SimpleNamespace fails {law}: ").removeprefix("with it, ")
    assert said.startswith(message.removeprefix("with it, "))


@pytest.mark.parametrize("ask", [request, lambda state: state.request_eval()])
def test_one_that_asks_is_exempt_by_name(ask):
    asking = callback(step_end=ask)
    assert list(check_callback.failures(asking)) == ["asks_nothing"]
    check_callback(asking, exempt={"asks_nothing": "that is what it is for"})


def test_files_beside_the_run_folder():
    here = os.listdir()
    found = check_callback.failures(callback(run_end=lambda state: Path("notes.txt").write_text("", encoding="utf-8")))
    assert found == {
        "writes_inside": "SimpleNamespace fails writes_inside: it writes beside the run folder: elsewhere/notes.txt"
    }
    assert os.listdir() == here
    beside = callback(run_end=lambda state: (state.folder.parent / "more").mkdir())
    assert found.keys() == check_callback.failures(beside).keys()
    check_callback(callback(run_end=lambda state: (state.folder / "more").mkdir()))


def test_one_that_raises():
    found = check_callback.failures(callback(step_end=fall))
    assert found["weights_untouched"].startswith(
        "SimpleNamespace fails weights_untouched: raised RuntimeError: it fell; raised by callback 'Doing'"
    )


def test_what_an_observer_may_do():
    """Numbers of its own, a checkpoint that it announces, and a hook that goes when it does."""
    handles = []

    def start(state):
        handles.append(state.student.register_forward_hook(lambda module, args, output: None))

    def end(state):
        handles.pop().remove()

    def save(state):
        state.announce("checkpoint_saving")
        state.announce("checkpoint_saved")

    def add(state):
        state.record["mine"] = 1.0

    def count(state):
        state.metrics["mine"] = 1.0

    check_callback(callback(run_start=start, close=end, epoch_end=save, log=add, eval_end=count))


def test_the_training_has_every_event_but_those_of_checkpoints_and_failures():
    from hookbrew.loop import EVENTS

    diary = kept(None)
    events = {entry.event for entry in diary.entries}
    rare = {"checkpoint_saving", "checkpoint_saved", "checkpoint_failed", "run_abort", "resumed"}
    assert set(EVENTS) - rare == events - {END}
    weights = [entry.weights["student.0.weight"] for entry in diary.entries]
    assert not torch.equal(weights[0], weights[-1])
    assert {entry.event for entry in kept(None, broken=True).entries} >= {"run_abort", "close"}


def test_the_check_leaves_no_trace(capfd):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    check_callback(callback(step_end=lambda state: print("a step")))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert capfd.readouterr() == ("", "")


def test_an_optional_callback_that_raises_is_caught_although_no_run_ends_by_it():
    made = callback(log=fall, close=lambda state: None)
    made.build.optional = True
    with pytest.raises(AssertionError) as caught:
        check_callback(made)
    assert "raised RuntimeError: it fell; in event log, step 1" in str(caught.value)
    ending = callback(close=fall)
    ending.build.optional = True
    told = check_callback.failures(ending)["survives_abort"]
    assert told.endswith("raised RuntimeError: it fell; in event close, step 1")
