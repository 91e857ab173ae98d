"""The losses that torchdistill has too, in value and gradient; where its conventions differ, both numbers."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torchdistill.losses import mid_level

from hookbrew_plugins.losses import at, ce, dist, fsp, hidden_mse, kd_mse, kl, pkt, rkd, sp
from hookbrew_plugins.losses.divergences import KL
from hookbrew_plugins.losses.variational import Likelihood

FIXED = settings(derandomize=True, deadline=None, max_examples=40)
SIDES = ("student", "teacher")
LOGITS = {f"{side}_module_path": "x" for side in SIDES} | {f"{side}_module_io": "output" for side in SIDES}
FEATURES = {"student_output_path": "x", "teacher_output_path": "x"}
PAIR = {"pair": {side: {"path": "x", "io": "output"} for side in SIDES}}


def given_to(criterion, targets=None):
    """A criterion of torchdistill as a function of two tensors; it finds them in dicts by path."""
    return lambda student, teacher: criterion({"x": {"output": student}}, {"x": {"output": teacher}}, targets)


def solved(loss, student, teacher):
    student = student.clone().requires_grad_()
    value = loss(student, teacher.clone())
    return value.detach(), *torch.autograd.grad(value, student)


def require_same(ours, theirs, pair, tolerance=1e-10):
    for mine, other in zip(solved(ours, *pair), solved(theirs, *pair), strict=True):
        assert (mine - other).abs().max() <= tolerance * other.abs().max().clamp(min=0.01)


@st.composite
def pairs(draw, *least, same=True):
    """Two float64 tensors, from the smallest sizes up; the last but for the batch may differ unless `same`."""
    shape = [draw(st.integers(low, low + 4)) for low in least]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.5, 2.0]))
    other = shape if same else [shape[0], draw(st.integers(least[1], least[1] + 4)), *shape[2:]]
    return tuple(scale * torch.randn(size, generator=generator, dtype=torch.float64) for size in (shape, other))


@given(pair=pairs(1, 2), temperature=st.sampled_from([1.0, 4.0]))
@FIXED
def test_kd_of_samples(pair, temperature):
    labels = torch.arange(len(pair[0])) % pair[0].shape[1]
    alone = mid_level.KDLoss(**LOGITS, temperature=temperature, alpha=0.0)
    require_same(partial(kl, temperature=temperature, t_squared=False), given_to(alone), pair)
    beside = mid_level.KDLoss(**LOGITS, temperature=temperature, alpha=0.3)
    require_same(
        lambda s, t: 0.3 * ce(s, labels) + 0.7 * kl(s, t, temperature=temperature), given_to(beside, labels), pair
    )


@given(pair=pairs(1, 2), temperature=st.sampled_from([1.0, 4.0]))
@FIXED
def test_standardized_logits(pair, temperature):
    theirs = mid_level.LogitStdKDLoss(**LOGITS, temperature=temperature, alpha=0.0, eps=0.0)
    ours = partial(kl, temperature=temperature, t_squared=False, standardize=True)
    require_same(ours, given_to(theirs), pair, 1e-8)  # two classes: the gradient is 0 but for rounding


@given(pair=pairs(2, 3), tau=st.sampled_from([1.0, 4.0]))
@FIXED
def test_dist(pair, tau):
    theirs = mid_level.DISTLoss(**LOGITS, beta=0.5, gamma=2.0, tau=tau)
    require_same(partial(dist, beta=0.5, gamma=2.0, temperature=tau), given_to(theirs), pair, 1e-8)


@given(pair=pairs(1, 1, 2))
@FIXED
def test_mse(pair):
    config = {"input": {"is_from_teacher": False, "module_path": "x", "io": "output"}}
    config["target"] = {"is_from_teacher": True, "module_path": "x", "io": "output"}
    theirs = given_to(mid_level.SimpleLossWrapper(nn.MSELoss(), **config))
    require_same(hidden_mse, theirs, pair)
    require_same(kd_mse, theirs, pair)


@given(pair=pairs(1, 1, 2, 2, same=False))
@FIXED
def test_attention_transfer(pair):
    require_same(at, given_to(mid_level.ATLoss(PAIR, mode="code")), pair)


@given(pair=pairs(3, 2, same=False))
@FIXED
def test_relations(pair):
    theirs = mid_level.RKDLoss(**FEATURES, dist_factor=25.0, angle_factor=50.0, reduction="mean")
    require_same(rkd, given_to(theirs), pair, 1e-7)  # its distances come from |a|^2 + |b|^2 - 2ab


@given(pair=pairs(2, 2, same=False))
@FIXED
def test_probabilities_of_neighbours(pair):
    require_same(partial(pkt, epsilon=1e-12), given_to(mid_level.PKTLoss(**LOGITS, eps=0.0)), pair)


@given(pair=pairs(1, 1, 3))
@FIXED
def test_vid(pair):
    ours, theirs = Likelihood(pair[0].shape[-1], 5.0, 1e-5).double(), given_to(mid_level.VIDLoss(PAIR))
    variance = F.softplus(ours.raw.detach()) + 1e-5
    require_same(ours, lambda student, teacher: theirs((student, variance.expand_as(student)), teacher), pair)


def wave(start, *shape):
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    return (2 * torch.sin(start + 0.37 * index**2)).reshape(shape)


def of_torchdistill(name, pair, targets=None, **options):
    """The value of a criterion."""
    return given_to(getattr(mid_level, name)(**options), targets)(*pair).item()


def test_t_squared_does_not_depend_on_a_hard_loss():
    pair, labels = (wave(7, 2, 5), wave(8, 2, 5)), torch.tensor([0, 1])
    alone, beside = (of_torchdistill("KDLoss", pair, labels, **LOGITS, temperature=4.0, alpha=a) for a in (0.0, 1e-9))
    assert alone == pytest.approx(0.0410527490, abs=5e-11)
    assert beside == pytest.approx(0.6568439847, abs=5e-11)
    assert kl(*pair, temperature=4.0).item() == pytest.approx(16 * alone, rel=1e-12)


def test_softmax_runs_over_the_classes_of_tokens():
    """torchdistill's runs over dimension 1, the tokens here, and its mean is over samples."""
    pair = wave(7, 2, 3, 5), wave(8, 2, 3, 5)
    assert of_torchdistill("KDLoss", pair, **LOGITS, temperature=1.0, alpha=0.0) == pytest.approx(
        2.1503024032, abs=5e-11
    )
    assert kl(*pair, temperature=1.0).item() == pytest.approx(0.5271462238, abs=5e-11)
    rows = [side.flatten(0, 1) for side in pair]
    assert of_torchdistill("KDLoss", rows, **LOGITS, temperature=1.0, alpha=0.0) == pytest.approx(
        0.5271462238, abs=5e-11
    )


def test_similarities_have_length_1():
    """torchdistill's `normalize(g, 1)` divides by the L1 norm, and not by the length as the paper does."""
    pair = wave(3, 4, 6), wave(4, 4, 6)
    for p, value in {
        1: of_torchdistill("SPKDLoss", pair, **FEATURES, reduction="batchmean"),
        2: sp(*pair).item(),
    }.items():
        ours, theirs = (F.normalize(x @ x.T, p=p, dim=1) for x in pair)
        assert value == pytest.approx((ours - theirs).square().sum().item() / 16, rel=1e-12)
    assert sp(*pair).item() == pytest.approx(0.1212772828, abs=5e-11)
    assert of_torchdistill("SPKDLoss", pair, **FEATURES, reduction="batchmean") == pytest.approx(
        0.0485799081, abs=5e-11
    )


def test_fsp_is_a_mean_of_squares():
    """torchdistill adds up the lengths of the columns of the difference of the same matrices."""
    layers = [[wave(s, 2, 3, 2, 2), wave(s + 2, 2, 4, 2, 2)] for s in (3, 4)]
    places = {f"{side}_{order}": {"path": order, "io": "output"} for side in SIDES for order in ("first", "second")}
    sides = [{"first": {"output": first}, "second": {"output": second}} for first, second in layers]
    apart = torch.sub(*(first.flatten(2) @ second.flatten(2).mT / 4 for first, second in layers))
    theirs = mid_level.FSPLoss({"pair": places})(*sides).item()
    assert theirs == pytest.approx(apart.norm(dim=1).sum().item() / 2, rel=1e-12)
    assert fsp(*layers).item() == pytest.approx(apart.square().mean().item(), rel=1e-12)
    assert [theirs, fsp(*layers).item()] == pytest.approx([6.3074489689, 0.9830485345], abs=5e-11)


def test_at_is_the_mean_of_the_authors_code():
    """torchdistill has the formula of the paper too, a sum of lengths."""
    pair = wave(3, 2, 3, 2, 2), wave(4, 2, 3, 2, 2)
    assert of_torchdistill("ATLoss", pair, at_pairs=PAIR, mode="paper") == pytest.approx(0.6276459526, abs=5e-11)
    assert of_torchdistill("ATLoss", pair, at_pairs=PAIR, mode="code") == pytest.approx(0.1218697344, abs=5e-11)
    assert at(*pair).item() == pytest.approx(0.1218697344, abs=5e-11)


def test_defaults_build():
    with pytest.raises(TypeError, match="unsupported operand"):  # 1 - alpha, and alpha is None
        mid_level.KDLoss(**LOGITS, temperature=4.0)
    assert callable(KL().build())
