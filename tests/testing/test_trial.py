"""What check_loss gives to losses on two layers, to those that know samples by number, and to those that learn."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hookbrew.errors import ObjectiveError
from hookbrew.testing import check_loss


def loss(function, **more):
    """Options of a loss with this function, or of a module made anew each time."""
    return SimpleNamespace(build=function if isinstance(function, type) else lambda: function, **more)


def widened(layers):
    return [x.float() if x.dtype == torch.bfloat16 else x for x in layers]


def flow(student, teacher, mask=None, *, blank=True, detach=True, whole=False):
    """The mean squared difference of products of two layers, or a bug of it."""
    assert isinstance(student, list)
    assert isinstance(teacher, list)
    assert len(student) == len(teacher) == 2
    ours, theirs = widened(student), widened(x.detach() if detach else x for x in teacher)
    if mask is not None and blank:
        ours, theirs = ([x.masked_fill(~mask.unsqueeze(-1), 0.0) for x in side] for side in (ours, theirs))
    rows = (ours[0] * ours[1] - theirs[0] * theirs[1]).square().mean(-1)
    if mask is None or whole:
        return rows.mean()
    return (rows * mask).sum() / mask.sum().clamp(min=1)


def test_a_flow_is_two_layers_a_side():
    names = {check.name for check in check_loss.checks(loss(flow, takes="flow"))}
    assert {"masked_out", "teacher_detached", "gradcheck", "any_strides", "micro_batches", "bfloat16"} <= names
    assert not names & {"impossible_class", "tokens_as_samples", "state_restores"}
    check_loss(loss(flow, takes="flow"))


BUGS = [
    ({"blank": False}, "masked_out"),
    ({"detach": False}, "teacher_detached"),
    ({"whole": True}, "mean_over_valid"),
]


@pytest.mark.parametrize(("bug", "law"), BUGS)
def test_bugs_of_a_flow(bug, law):
    wrong = loss(lambda student, teacher, mask=None: flow(student, teacher, mask, **bug), takes="flow")
    assert law in check_loss.failures(wrong)


def test_a_flow_that_changes_a_layer_in_place():
    def doubling(student, teacher, mask=None):
        teacher[1].mul_(2)
        return flow(student, teacher, mask)

    found = check_loss.failures(loss(doubling, takes="flow"))
    assert found["inputs_untouched"] == (
        "SimpleNamespace fails inputs_untouched: it changes its teacher in place (student (3, 4, 5))"
    )


class Memory(nn.Module):
    """Pulls each sample to a place of its own that moves with it, or does so with a bug."""

    bug = ""

    def __init__(self):
        super().__init__()
        self.register_buffer("places", torch.zeros(8, 5), persistent=self.bug != "unsaved")
        self.calls = 0

    def forward(self, student, index):
        if student.dim() > 2:
            raise ObjectiveError("expected (batch, features)")
        assert index.dtype == torch.long
        student = student if student.dtype == torch.float64 else student.float()
        self.calls += 1
        value = (student - self.places[index].to(student.dtype)).square().mean()
        with torch.no_grad():
            self.places[index] += (student.to(self.places.dtype) - self.places[index]) / 2
        if self.bug == "counting":
            value = value / self.calls
        return value + torch.rand(()) if self.bug == "drawing" else value


def test_a_loss_that_remembers_is_asked_in_one_state():
    options = loss(Memory, takes="hidden")
    assert "state_restores" in {check.name for check in check_loss.checks(options)}
    check_loss(options)


@pytest.mark.parametrize(
    ("bug", "law"), [("unsaved", "state_restores"), ("counting", "state_restores"), ("drawing", "deterministic")]
)
def test_bugs_of_a_memory(bug, law):
    options = loss(type("Wrong", (Memory,), {"bug": bug}), takes="hidden")
    assert law in check_loss.failures(options)


def test_a_number_for_each_sample():
    def indexed(student, index):
        require = index.shape == student.shape[:1] and index.dtype == torch.long
        assert require, f"index is {index.dtype} {tuple(index.shape)}"
        values = student if student.dtype == torch.float64 else student.float()
        return (values.flatten(1).square().mean(1) * (index + 1)).mean()

    check_loss(loss(indexed, takes="hidden"))
    check_loss(
        loss(indexed), exempt={"impossible_class": "it squares logits", "tokens_as_samples": "they are numbered"}
    )
