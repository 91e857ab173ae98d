"""simkd: its projector, its value, and a student that predicts with the teacher's classifier."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import hookbrew as hb
from hookbrew.errors import ObjectiveError
from hookbrew.testing import check_loss
from hookbrew_plugins.losses import Reused
from hookbrew_plugins.losses.simkd import SimKD


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def names(module):
    return [type(part).__name__ for part in module]


def test_the_projector_has_the_sizes_of_the_first_batch():
    transfer = SimKD(factor=2).build()
    assert transfer.projector is None
    transfer(drawn(3, 6), drawn(3, 20))
    assert [tuple(p.weight.shape) for p in transfer.projector if isinstance(p, nn.Linear)] == [
        (10, 6),
        (10, 10),
        (20, 10),
    ]
    assert names(transfer.projector) == ["Linear", "LayerNorm", "ReLU"] * 2 + ["Linear"]
    first = transfer.projector
    transfer(drawn(5, 6), drawn(5, 20))
    assert transfer.projector is first


def test_the_mean_over_valid_positions():
    transfer = SimKD().build()
    student, teacher = drawn(2, 3, 6), drawn(2, 3, 4)
    mask = torch.tensor([[True, True, True], [False, True, False]])
    found = transfer(student, teacher, mask)
    expected = (transfer.projector(student[mask]) - teacher[mask]).square().mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    found.backward()
    assert all(p.grad is not None for p in transfer.parameters())


@pytest.mark.parametrize(("ours", "theirs", "both"), [((8, 8), (4, 2), (4, 2)), ((2, 4), (4, 4), (2, 4))])
def test_maps_are_pooled_to_the_smaller_one(ours, theirs, both):
    transfer = SimKD().build()
    student, teacher = drawn(2, 3, *ours), drawn(2, 32, *theirs).relu()
    found = transfer(student, teacher)
    assert names(transfer.projector) == ["AdaptiveAvgPool2d", *["Conv2d", "BatchNorm2d", "ReLU"] * 3]
    kernels = [tuple(p.weight.shape) for p in transfer.projector if isinstance(p, nn.Conv2d)]
    assert kernels == [(16, 3, 1, 1), (16, 16, 3, 3), (32, 16, 1, 1)]
    projected = transfer.projector(student)
    assert projected.shape == (2, 32, *both)
    expected = (projected - nn.functional.adaptive_avg_pool2d(teacher, both)).square().mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_look_moves_no_batch_norm():
    """The objective looks in evaluation mode, and gives back the modes of the modules that it knew before."""
    transfer = SimKD().build()
    transfer.training = False
    transfer(drawn(4, 3, 2, 2), drawn(4, 9, 2, 2))
    norm = transfer.projector[2]
    assert norm.num_batches_tracked == 0
    transfer.training = True
    transfer(drawn(4, 3, 2, 2), drawn(4, 9, 2, 2))
    assert norm.num_batches_tracked == 1


def test_whether_it_ends_with_a_relu():
    for rectify, shape, last in [(None, (2, 4), "Linear"), (True, (2, 4), "ReLU"), (False, (2, 4, 2, 2), "Conv2d")]:
        transfer = SimKD(rectify=rectify).build()
        transfer(drawn(*shape), drawn(*shape))
        assert names(transfer.projector)[-1] == last


@pytest.mark.parametrize("shape", [(3, 6), (2, 3, 6), (2, 3, 4, 4)])
def test_a_new_one_takes_its_state_before_any_batch(shape):
    transfer = SimKD().build()
    transfer(drawn(*shape), drawn(*shape))
    file = io.BytesIO()
    torch.save(transfer.state_dict(), file)
    fresh = SimKD().build()
    fresh.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert torch.equal(fresh(drawn(*shape), 2 * drawn(*shape)), transfer(drawn(*shape), 2 * drawn(*shape)))
    SimKD().build().load_state_dict(SimKD().build().state_dict())


@check_loss.each(SimKD(factor=1), SimKD(rectify=True))
def test_kit(check):
    check()


class Student(nn.Module):
    """A small network with a classifier of its own."""

    def __init__(self):
        super().__init__()
        self.body, self.fc = nn.Sequential(nn.Linear(4, 6), nn.Tanh()), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.body(x))


def test_the_student_predicts_with_the_teachers_classifier():
    torch.manual_seed(0)
    student, transfer = Student(), SimKD().build()
    teacher = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(64, 4)
    with torch.no_grad():
        target, features = teacher(x).argmax(1), teacher[:2](x)
    transfer(student.body(x), features)
    optimizer = torch.optim.Adam([*student.body.parameters(), *transfer.parameters()], 0.02)
    for _ in range(200):
        optimizer.zero_grad()
        transfer(student.body(x), features).backward()
        optimizer.step()
    trunk = copy.deepcopy(student)
    trunk.fc = nn.Identity()
    model = Reused(trunk, transfer.projector, teacher[2]).eval()
    assert torch.equal(model(x), teacher[2](transfer.projector(student.body(x))))
    assert (model(x).argmax(1) == target).float().mean() > 0.9
    assert {name.split(".")[0] for name in model.state_dict()} == {"trunk", "projector", "head"}
    with torch.no_grad():
        before = model(x)
        teacher[2].bias += 1
        torch.testing.assert_close(model(x), before + 1)


def test_in_a_run(pack):
    """The projector is in the objective's extras and trained; the student's classifier is left alone."""
    torch.manual_seed(0)
    student, teacher = Student(), nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    data = [{"x": drawn(8, 4), "input": drawn(8, 4)}] * 3
    table = hb.loss("simkd", student="fc:in", teacher="2:in")
    run = hb.Distillation(teacher, student, [table], catalogue=pack)
    head = copy.deepcopy(student.fc.state_dict())
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    first = hb.Distillation(teacher, copy.deepcopy(student), [table], catalogue=pack)
    first.fit(data, steps=1, optimizer=torch.optim.SGD(first.student.parameters(), 1e-9))
    run.fit(data, epochs=1, optimizer=optimizer)
    transfer = run.objective.extras["simkd/Transfer"]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in transfer.parameters()} <= held
    assert len([*transfer.parameters()]) == 10
    started = first.objective.extras["simkd/Transfer"].state_dict()
    moved = [name for name, p in transfer.named_parameters() if not torch.allclose(p, started[name], atol=1e-6)]
    assert "projector.0.weight" in moved
    assert "projector.6.weight" in moved
    assert all(torch.equal(value, head[name]) for name, value in student.fc.state_dict().items())


def test_a_projector_that_was_never_made():
    with pytest.raises(ObjectiveError) as caught:
        Reused(Student(), SimKD().build().projector, nn.Identity())
    assert str(caught.value) == ("the projector of this simkd loss was never made: train it first, or load its state")


WRONG = [
    ((2, 4), (2, 3, 4), "expected vectors, tokens or maps, the same on both sides; student (2, 4), teacher (2, 3, 4)"),
    ((2, 3, 4), (2, 5, 4), "numbers of tokens differ: 3 and 5; student (2, 3, 4), teacher (2, 5, 4)"),
    ((2, 3, 4, 4), (1, 3, 4, 4), "batch sizes differ: 2 and 1; student (2, 3, 4, 4), teacher (1, 3, 4, 4)"),
]


@pytest.mark.parametrize(("student", "teacher", "message"), WRONG)
def test_shapes_that_do_not_fit(student, teacher, message):
    with pytest.raises(ObjectiveError) as caught:
        SimKD().build()(torch.zeros(student), torch.zeros(teacher))
    assert str(caught.value) == message


def test_one_table_learns_one_map():
    transfer = SimKD().build()
    transfer(drawn(2, 4), drawn(2, 9))
    with pytest.raises(ObjectiveError) as caught:
        transfer(drawn(2, 4), drawn(2, 8))
    assert str(caught.value) == (
        "student and teacher have 4 and 8 features, and what this loss learns was made for 4 and 9: write a table for "
        "each pair of layers"
    )
    maps = SimKD().build()
    maps(drawn(2, 4, 4, 4), drawn(2, 9, 4, 4))
    assert maps(drawn(2, 4, 6, 6), drawn(2, 9, 6, 6)).isfinite()


def test_a_map_has_no_mask():
    with pytest.raises(ObjectiveError) as caught:
        SimKD().build()(drawn(2, 3, 4, 4), drawn(2, 3, 4, 4), torch.ones(2, 3, dtype=torch.bool))
    assert str(caught.value) == "a mask of positions says nothing about a map (2, 3, 4, 4); write mask = false"
