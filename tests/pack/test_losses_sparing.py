"""Losses on large logits, taken in chunks of rows: what they are on small ones, with fewer copies."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hookbrew.errors import ObjectiveError
from hookbrew.testing import check_loss
from hookbrew_plugins.losses import divergences, logits, sparing
from hookbrew_plugins.losses.divergences import JSD, KL, RKL, SKL, SRKL
from hookbrew_plugins.losses.logits import KDCE

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
LOSSES = [KL(), KL(dynamic="flsw"), KDCE(t_squared=False), RKL(temperature=3)]
LOSSES += [JSD(), JSD(beta=0.2), JSD(beta=1), SKL(), SRKL(skew=0.4)]
ALL = pytest.mark.parametrize("loss", LOSSES, ids=str)


@pytest.fixture
def large(monkeypatch):
    """Whatever is larger than 8 numbers is large, and chunks have few rows."""
    monkeypatch.setattr(sparing, "BUFFER", 32)


@pytest.mark.parametrize("loss", [KL(), KDCE(), RKL(), JSD(), SKL(), SRKL()], ids=str)
@pytest.mark.usefixtures("large")
def test_the_laws_of_losses(loss):
    check_loss(loss)


def drawn(*shape, dtype=torch.float64):
    student, teacher = (3 * torch.randn(*shape, dtype=dtype) for _ in range(2))
    return student.requires_grad_(), teacher, torch.rand(shape[:-1]) > 0.4


def both(loss, given, monkeypatch):
    """The value and the gradient, whole and in chunks."""
    found = []
    for bytes_ in (2**30, 64):
        monkeypatch.setattr(sparing, "BUFFER", bytes_)
        value = loss.build()(*given)
        found.append((value.detach(), *torch.autograd.grad(value, given[0])))
    return found


@ALL
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_the_loss_on_small_logits(loss, masked, monkeypatch):
    student, teacher, mask = drawn(3, 5, 7)
    whole, chunks = both(loss, (student, teacher, mask if masked else None), monkeypatch)
    torch.testing.assert_close(chunks, whole, **CLOSE)


@ALL
def test_classes_that_are_ruled_out(loss, monkeypatch):
    student, teacher, mask = drawn(3, 5, 7)
    ruled = torch.zeros(7, dtype=torch.bool)
    ruled[[1, 4]] = True
    student, teacher = (one.detach().masked_fill(ruled, -torch.inf) for one in (student, teacher))
    whole, chunks = both(loss, (student.requires_grad_(), teacher, mask), monkeypatch)
    torch.testing.assert_close(chunks, whole, **CLOSE)


def test_sixteen_bits(monkeypatch):
    student, teacher, mask = drawn(3, 5, 7, dtype=torch.bfloat16)
    whole, chunks = both(KL(), (student, teacher, mask), monkeypatch)
    torch.testing.assert_close(chunks, whole)
    assert chunks[1].dtype == torch.bfloat16


@pytest.mark.parametrize("again", [False, True])
def test_float16_keeps_what_a_scaler_saves(again, monkeypatch):
    student, teacher, mask = drawn(3, 5, 7, dtype=torch.float16)
    found = []
    for bytes_ in (2**30, 64):
        monkeypatch.setattr(sparing, "BUFFER", bytes_)
        value = 2.0**24 * divergences.kl(student, teacher, mask, temperature=1000.0, t_squared=False)
        found += torch.autograd.grad(value, student, retain_graph=again)
    assert found[0].any()
    torch.testing.assert_close(found[1], found[0], rtol=2e-2, atol=1e-4)


@pytest.mark.usefixtures("large")
def test_second_derivatives():
    student, teacher, mask = drawn(2, 3, 5)
    assert torch.autograd.gradgradcheck(lambda one: divergences.kl(one, teacher, mask), student)


@pytest.mark.usefixtures("large")
def test_a_gradient_that_is_asked_for_again():
    student, teacher, _ = drawn(2, 3, 5)
    value = divergences.kl(student, teacher)
    first, second = (torch.autograd.grad(value, student, retain_graph=again)[0] for again in (True, False))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.usefixtures("large")
def test_transforms_and_what_learns_go_the_other_way():
    student, teacher, _ = drawn(4, 3, 5)
    alone = torch.stack([divergences.kl(one, two) for one, two in zip(student, teacher, strict=True)])
    torch.testing.assert_close(torch.func.vmap(divergences.kl)(student, teacher), alone)
    heat = torch.full((4, 3), 2.0, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(divergences.kl(student, teacher, temperature=heat), heat)
    assert slope.any()


@pytest.mark.usefixtures("large")
def test_shapes_are_compared():
    with pytest.raises(ObjectiveError, match="classes differ: 7 and 6"):
        logits.kd_ce(torch.randn(3, 7), torch.randn(3, 6))
    with pytest.raises(ObjectiveError, match="expected torch"):
        logits.kd_ce(torch.randn(3, 7), torch.randn(3, 7), torch.ones(3).long())
    with pytest.raises(ObjectiveError, match="one for each position"):
        logits.kd_ce(torch.randn(3, 7), torch.randn(3, 7), temperature=torch.ones(2))


@pytest.mark.usefixtures("large")
def test_a_loss_that_is_kept_keeps_no_logits():
    student, teacher, mask = drawn(2, 3, 5)
    there = weakref.ref(teacher)
    value = divergences.kl(student * 1.0, teacher, mask)
    value.backward()
    del teacher
    assert there() is None


class Sizes(TorchDispatchMode):
    """How many tensors of a size operations make that are no views, out= and all."""

    def __init__(self, size):
        super().__init__()
        self.size, self.found = size, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor) and output.untyped_storage().nbytes() >= self.size:
            self.found.add(output.untyped_storage()._cdata)
        return output


def test_one_tensor_is_as_large_as_logits(monkeypatch):
    monkeypatch.setattr(sparing, "BUFFER", 1024)
    student, teacher, mask = drawn(8, 16, 50, dtype=torch.float32)
    with Sizes(student.numel() * 4) as seen:
        divergences.kl(student, teacher, mask).backward()
    known = {one.untyped_storage()._cdata for one in (student, teacher)}
    assert len(seen.found - known) == 1
