"""Which tensor of a call is meant: default picks, explicit picks, and what a mistake says."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from hookbrew.errors import SelectorError
from hookbrew.taps import Taps, tap

A, B, LOSS = torch.arange(6.0).view(2, 3), torch.ones(2), torch.tensor(0.5)
Pair = namedtuple("Pair", "loss logits")
Half = namedtuple("Half", "hidden cell")


@dataclass
class Output:
    loss: torch.Tensor
    last_hidden_state: torch.Tensor


class Emit(nn.Module):
    """Gives a fixed value."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, *args, **kwargs):
        return self.value


def read(value, text, *args, **kwargs):
    with tap(Emit(value), it=text) as taps:
        taps.run(*args, **kwargs)
    return taps["it"]


@pytest.mark.parametrize(
    ("value", "text", "expected"),
    [
        (A, ":out", A),
        ((A, B), ":out", A),
        ([A, B], ":out", A),
        ((LOSS,), ":out", LOSS),
        ({"loss": LOSS, "logits": A}, ":out", A),
        ({"loss": LOSS, "last_hidden_state": A, "x": B}, ":out", A),
        ({"last_hidden_state": B, "logits": A}, ":out", A),
        ({"logits": None, "last_hidden_state": A}, ":out", A),
        (Pair(LOSS, A), ":out", A),
        (Output(LOSS, A), ":out", A),
        ({"loss": LOSS, "logits": A}, "logits", A),
        ({"loss": LOSS, "logits": A}, ":out.loss", LOSS),
        ({"deep": (B, {"x": A})}, ":out.deep[1].x", A),
        ((A, B), ":out[1]", B),
        ((A, B), ":out[-1]", B),
        (Half(A, B), ":out.cell", B),
        (Half(A, B), ":out[1]", B),
        (Output(LOSS, A), ":out.loss", LOSS),
        ({0: A, 1: B}, ":out[1]", B),
    ],
)
def test_outputs(value, text, expected):
    assert read(value, text) is expected


def test_inputs():
    assert read(A, ":in", A, B, x=LOSS) is A
    assert read(A, ":in", x=B, y=LOSS) is B
    assert read(A, ":in", (A, B)) is A
    assert read(A, ":in[1]", (A, B)) is B
    assert read(A, ":args", A, B) is A
    assert read(A, ":args[1]", A, B) is B
    assert read(A, ":args[1].x", A, {"x": B}) is B
    assert read(A, ":kwargs.y", A, x=LOSS, y=B) is B
    assert read(A, ":kwargs", A, logits=B) is B


@pytest.mark.parametrize(
    ("value", "text", "problem"),
    [
        (A, ":out[0]", "output is already a tensor (2, 3); [0] would slice it, drop the '[0]'"),
        ((A, B), ":out[0][1]", "output[0] is already a tensor (2, 3); [1] would slice it, drop the '[1]'"),
        (A, ":out.logits", "output is already a tensor (2, 3); drop the '.logits'"),
        ({"hidden": A, "aux": B}, ":out", "output is a dict with hidden, aux; add a pick: .hidden or .aux"),
        (Half(A, B), ":out", "output is a Half with hidden, cell; add a pick: .hidden or .cell"),
        (Pair(LOSS, None), ":out", "output is a Pair with loss, logits; add a pick: .logits or .loss"),
        ((LOSS, A), ":out", "output is a tuple of 2 that begins with a scalar, perhaps a loss; add a pick: [1]"),
        ((None, A), ":out", "output is a tuple of 2 that begins with None; add a pick: [1]"),
        (((A, B), A), ":out", "output is a tuple of 2 that begins with a tuple of 2; add a pick: [1]"),
        ((), ":out", "output is empty"),
        ({}, ":out", "output is a dict, not a tensor"),
        (None, ":out", "output is None, not a tensor"),
        (3, ":out", "output is an int, not a tensor"),
        ({"logit": A}, ":out.logits", "output is a dict with logit, without 'logits'; did you mean 'logit'?"),
        ((A, B), ":out.x", "output is a tuple of 2; '.x' needs keys"),
        ((A, B), ":out[2]", "output has 2 element(s); '[2]' is out of range"),
        ({"states": (A, B)}, ":out.states", "output.states is a tuple of 2, not a tensor"),
        (
            OrderedDict(loss=LOSS, logits=A),
            ":out[1]",
            "output is an OrderedDict with loss, logits; '[1]' needs a tuple",
        ),
        (A, ":in", "input is None, not a tensor"),
        (A, ":args[0]", "args has 0 element(s); '[0]' is out of range"),
        (A, ":kwargs.x", "kwargs is a dict; '.x' needs keys"),
    ],
)
def test_mistakes(value, text, problem):
    with pytest.raises(SelectorError) as caught:
        read(value, text)
    assert str(caught.value) == f"{text.partition('.')[0].partition('[')[0]}: {problem}"


def test_a_mistake_waits_for_the_reader():
    """A model may catch exceptions, and the other taps are good."""
    with Taps(Emit(A), {"bad": ":out[0]", "good": ":out"}) as taps:
        assert taps.run() is A
    assert taps["good"] is A
    with pytest.raises(SelectorError, match="already a tensor"):
        taps["bad"]


def test_labels_do_not_make_the_default_the_loss(transformer):
    model, batch = transformer("bert")
    with tap(model, a="logits", b=":out", c=":out.loss", d="classifier") as taps:
        out = taps.run(**batch, labels=torch.tensor([0, 1]))
    assert taps["a"] is taps["b"] is taps["d"] is out.logits
    assert taps["c"] is out.loss
    with tap(model, a="logits") as taps:
        taps.run(**batch, labels=torch.tensor([0, 1]), return_dict=False)
    with pytest.raises(SelectorError, match="begins with a scalar, perhaps a loss"):
        taps["a"]
