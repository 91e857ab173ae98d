"""crd against the formulas in NumPy, and what it remembers from batch to batch."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

import hookbrew as hb
from hookbrew.errors import ObjectiveError
from hookbrew.testing import check_loss
from hookbrew_plugins.losses.contrast import CRD

OPTIONS = CRD(samples=10, dimension=5, negatives=6, temperature=0.5, momentum=0.3)


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(seed, *index):
    """Features of both sides, of widths 3 and 4, and the numbers of the samples."""
    return drawn(seed, len(index), 3), drawn(seed + 100, len(index), 4), torch.tensor(index)


def double(options=OPTIONS):
    """A loss in float64 that has its embeddings, and no batch behind it."""
    loss = options.build()
    loss.eval()
    loss(*batch(0, 0, 1))
    return loss.double().train()


def doubled(*tensors):
    return [x.double() if x.is_floating_point() else x for x in tensors]


def rows(matrix):
    """Rows of length 1."""
    return matrix / np.sqrt((matrix**2).sum(axis=1, keepdims=True))


class Oracle:
    """The method in NumPy, started from what a loss holds."""

    def __init__(self, loss, options):
        self.o = options
        self.memory = [loss.memory_student.numpy().copy(), loss.memory_teacher.numpy().copy()]
        self.weights = [[p.detach().numpy().copy() for p in loss.embeddings[s].parameters()] for s in loss.embeddings]
        self.z = None

    def __call__(self, student, teacher, index, negatives):
        vectors = [rows(x.numpy() @ w.T + b) for x, (w, b) in zip((student, teacher), self.weights, strict=True)]
        places = np.array([[i, *negatives] for i in index.tolist()])
        scores = [
            np.exp((self.memory[1 - side][places] * vectors[side][:, None]).sum(-1) / self.o.temperature)
            for side in (0, 1)
        ]
        if self.z is None:
            self.z = [x.mean() * self.o.samples for x in scores]
        noise = len(negatives) / self.o.samples
        total = 0.0
        for score, z in zip(scores, self.z, strict=True):
            p = score / z
            told = np.log(p[:, 0] / (p[:, 0] + noise)) + np.log(noise / (p[:, 1:] + noise)).sum(axis=1)
            total -= told.mean()
        for side in (0, 1):
            old = self.o.momentum * self.memory[side][index.numpy()]
            self.memory[side][index.numpy()] = rows(old + (1 - self.o.momentum) * vectors[side])
        return total


def test_the_formulas_over_several_batches():
    loss = double()
    oracle = Oracle(loss, OPTIONS)
    for step, index in enumerate([(3, 1, 7), (2, 9), (1, 0, 3, 4)]):
        given = doubled(*batch(step, *index))
        expected = oracle(*given, loss.drawn(torch.device("cpu")).tolist())
        assert loss(*given).item() == pytest.approx(expected, rel=1e-12)
        np.testing.assert_allclose(loss.memory_student.numpy(), oracle.memory[0], rtol=1e-12)
        np.testing.assert_allclose(loss.memory_teacher.numpy(), oracle.memory[1], rtol=1e-12)
        np.testing.assert_allclose(loss.normalisers.exp().numpy(), oracle.z, rtol=1e-12)


def test_both_embeddings_learn_and_the_teacher_does_not():
    loss = OPTIONS.build()
    student, teacher, index = batch(0, 1, 2)
    loss(student.requires_grad_(), teacher.requires_grad_(), index).backward()
    assert student.grad.count_nonzero() > 0
    assert teacher.grad is None
    assert all(p.grad.count_nonzero() > 0 for p in loss.parameters())
    assert len([*loss.parameters()]) == 4


def test_a_low_temperature():
    loss = CRD(samples=10, dimension=5, temperature=0.001).build()
    student, teacher, index = batch(0, 1, 2)
    found = loss(student.requires_grad_(), teacher, index)
    found.backward()
    assert found.isfinite()
    assert student.grad.isfinite().all()


def test_gradcheck():
    loss = double()
    student, teacher, index = doubled(*batch(0, 1, 2, 5))
    loss(student, teacher, index)
    loss.eval()
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, index), student.requires_grad_())


def test_at_first():
    loss = CRD(samples=400, dimension=12).build()
    assert loss.memory_student.shape == (400, 12)
    assert loss.memory_student.abs().max() <= 0.5
    assert loss.memory_student.std() == pytest.approx(0.5 / 3**0.5, rel=0.05)
    assert not torch.equal(loss.memory_student, loss.memory_teacher)
    assert torch.equal(loss.memory_student, CRD(samples=400, dimension=12).build().memory_student)
    assert not torch.equal(loss.memory_student, CRD(samples=400, dimension=12, seed=1).build().memory_student)


def test_negatives():
    loss = CRD(samples=50, dimension=2, negatives=2000).build()
    assert loss.drawn(torch.device("cpu")).shape == (50,)
    loss = CRD(samples=3000, dimension=2, negatives=2000).build()
    seen = loss.drawn(torch.device("cpu"))
    assert seen.shape == (2000,)
    assert 0 <= seen.min() < 300
    assert 2700 < seen.max() < 3000
    loss(*batch(0, 1, 2))
    assert not torch.equal(loss.drawn(torch.device("cpu")), seen)


@pytest.mark.parametrize("how", ["eval", "no_grad"])
def test_only_training_moves_it(how):
    loss = OPTIONS.build()
    loss(*batch(0, 1, 2))
    before = copy.deepcopy(loss.state_dict())
    if how == "eval":
        loss.eval()
    with torch.set_grad_enabled(how != "no_grad"):
        values = [loss(*batch(1, 3, 4)) for _ in range(2)]
    assert torch.equal(*values)
    for name, value in loss.state_dict().items():
        assert torch.equal(value, before[name]), name
    loss.train()(*batch(1, 3, 4))
    moved = {name for name, value in loss.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"memory_student", "memory_teacher", "_extra_state"}


def test_the_random_numbers_of_torch_stay():
    loss = OPTIONS.build()
    loss(*batch(0, 1, 2))
    before = torch.get_rng_state()
    loss(*batch(1, 3, 4))
    OPTIONS.build()
    assert torch.equal(before, torch.get_rng_state())


def steps(loss, optimizer, seeds):
    """The losses of some training steps."""
    found = []
    for seed in seeds:
        optimizer.zero_grad()
        value = loss(*batch(seed, seed % 10, (seed + 3) % 10, (seed + 5) % 10))
        value.backward()
        optimizer.step()
        found.append(value.item())
    return found


@pytest.mark.parametrize("measured", [True, False])
def test_a_new_one_goes_on_bit_for_bit(measured):
    loss = OPTIONS.build()
    loss.eval()(*batch(9, 0))
    optimizer = torch.optim.SGD(loss.train().parameters(), 0.1)
    steps(loss, optimizer, range(4))
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    straight = steps(loss, optimizer, range(4, 9))
    fresh = OPTIONS.build()
    if measured:
        fresh.eval()(*batch(9, 0))
    fresh.train().load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert steps(fresh, torch.optim.SGD(fresh.parameters(), 0.1), range(4, 9)) == straight


def test_it_learns_to_tell_samples_apart():
    torch.manual_seed(0)
    student, x, index = nn.Linear(6, 6), drawn(2, 20, 6), torch.arange(20)
    teacher = (x @ drawn(1, 6, 8)).tanh()
    loss = CRD(samples=20, dimension=16, negatives=20, temperature=0.2).build()
    loss.eval()(student(x), teacher, index)
    optimizer = torch.optim.Adam([*student.parameters(), *loss.train().parameters()], 0.02)
    values = []
    for _ in range(150):
        optimizer.zero_grad()
        values.append(loss(student(x), teacher, index))
        values[-1].backward()
        optimizer.step()
    assert values[-1] < 0.8 * values[0]
    with torch.no_grad():
        nearest = (loss.embedded("student", student(x)) @ loss.memory_teacher.T).argmax(1)
    assert (nearest == index).float().mean() >= 0.9


@check_loss.each(CRD(samples=6), CRD(samples=40, negatives=10, dimension=4, temperature=1.0, momentum=0.9, seed=3))
def test_kit(check):
    check()


ZEROS = torch.zeros(2, 3)
WRONG = [
    (ZEROS, torch.tensor([1, 10]), "index: sample 10 is not one of samples = 10; write how many samples the training "),
    (ZEROS, torch.tensor([-1, 2]), "index: sample -1 is not one of samples = 10; write how many samples the training"),
    (ZEROS, torch.tensor([1.0, 2.0]), "index is torch.float32 (2,); expected torch.long (2,)"),
    (ZEROS, torch.tensor([1]), "index is torch.int64 (1,); expected torch.long (2,)"),
    (ZEROS[:1], torch.tensor([1]), "batch sizes differ: 1 and 2; student (1, 3), teacher (2, 3)"),
    (torch.zeros(2, 3, 4), torch.tensor([1, 2]), "expected one vector a sample, (batch, features): name pooled fe"),
]


@pytest.mark.parametrize(("student", "index", "message"), WRONG)
def test_what_does_not_fit(student, index, message):
    with pytest.raises(ObjectiveError) as caught:
        OPTIONS.build()(student, ZEROS, index)
    assert str(caught.value).startswith(message)


def distillation(pack):
    """A student that learns by crd alone."""
    torch.manual_seed(0)
    student, teacher = (nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2)) for width in (3, 6))
    table = hb.loss("crd", samples=12, dimension=4, negatives=8, student="1", teacher="1")
    return hb.Distillation(teacher, student, [table], catalogue=pack)


def test_in_a_run(pack):
    data = [{"input": drawn(i, 4, 4), "index": torch.arange(4 * i, 4 * i + 4)} for i in range(3)]
    run = distillation(pack)
    run.fit(data, epochs=1, device="cpu")
    (loss,) = run.objective.extras.values()
    assert loss.draws == 3
    assert torch.allclose(loss.memory_student.norm(dim=1), torch.ones(12))
    again = distillation(pack)
    again.fit(data, epochs=1, device="cpu")
    (other,) = again.objective.extras.values()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in loss.state_dict().items())
