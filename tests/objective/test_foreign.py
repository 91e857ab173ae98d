"""Losses of other people: what is asked of their functions, and how their mistakes are reported."""

import pytest
import torch

import hookbrew as hb
from hookbrew.config import structure_loss
from hookbrew.errors import ConfigError
from hookbrew.objective import Objective
from tests.offering import offering


def attempt(tagger, batch, function, **table):
    known = offering(lambda _: function, takes="hidden")
    loss = structure_loss(hb.loss("mine", student="blocks[0]", teacher="blocks[0]", **table).table, known)
    objective = Objective(tagger(pooled=False), tagger(pooled=False), [loss])
    with objective.attached():
        objective.measure(batch)
    return objective


def test_a_loss_without_a_mask_is_refused_on_padded_tensors(tagger, batches):
    (batch,) = batches([3, 2])

    def mine(student, teacher):
        return (student - teacher).abs().mean()

    with pytest.raises(ConfigError) as caught:
        attempt(tagger, batch, mine)
    assert str(caught.value) == (
        "losses[0]: loss 'mine' takes no mask, and 'attention_mask' marks padding in its tensors; give its "
        "function a parameter 'mask', or write mask = false if every position counts"
    )
    attempt(tagger, batch, mine, mask=False)


def test_a_parameter_that_nobody_gives(tagger, batches):
    with pytest.raises(ConfigError) as caught:
        attempt(tagger, *batches([3, 2]), lambda student, techer: student.mean())
    assert str(caught.value) == (
        "losses[0]: the function of loss 'mine' asks for 'techer', which nobody gives; did you mean 'teacher'?"
    )


def test_a_loss_must_be_a_scalar(tagger, batches):
    with pytest.raises(ConfigError) as caught:
        attempt(tagger, *batches([3, 2]), lambda student, teacher, mask: (student - teacher).abs().mean(-1))
    assert str(caught.value) == (
        "losses[0]: loss 'mine' returned a tensor (2, 3); expected a scalar tensor, the mean over valid positions"
    )


def test_an_exception_is_noted_with_shapes(tagger, batches):
    def mine(student, teacher, mask):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken") as caught:
        attempt(tagger, *batches([3, 2]), mine)
    assert caught.value.__notes__ == [
        "raised by loss 'mine' (losses[0]) on student (2, 3, 8), teacher (2, 3, 8), mask (2, 3)"
    ]


def test_a_learnable_loss_is_trained(tagger, batches):
    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.log = torch.nn.Parameter(torch.zeros(()))

        def forward(self, student, teacher, mask=None):
            return self.log.exp() * (student - teacher).abs().mean()

    objective = attempt(tagger, *batches([3, 2]), Scale())
    assert len(list(objective.extras.parameters())) == 1


def test_a_learnable_loss_goes_where_the_student_is(tagger, batches):
    moves = []

    class Scale(torch.nn.Module):
        def to(self, *place):
            moves.append(place)
            return super().to(*place)

        def forward(self, student, teacher, mask=None):
            return (student - teacher).abs().mean()

    attempt(tagger, *batches([3, 2]), Scale())
    assert moves == [(torch.device("cpu"),)]
