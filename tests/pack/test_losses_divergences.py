"""kl, rkl, jsd, skl, srkl and tvd: their limits, their bounds, and how they relate to each other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbrew_plugins.losses import jsd, kd_ce, kl, rkl, skl, srkl, tvd
from hookbrew_plugins.losses.divergences import SKL, SRKL

SEEDS = st.integers(0, 1000)
LOSSES = pytest.mark.parametrize("loss", [kl, rkl, jsd, skl, srkl])


def pair(seed, *shape, scale=1.0):
    """Random logits, float64."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, generator=generator, dtype=torch.float64) * scale
    return student, teacher


def test_kl_is_kd_ce_less_the_entropy_of_the_teacher():
    student, teacher = pair(0, 4, 5)
    expected = kd_ce(student, teacher, temperature=3.0) - kd_ce(teacher, teacher, temperature=3.0)
    assert kl(student, teacher, temperature=3.0).item() == pytest.approx(expected.item(), rel=1e-12)


def test_kl_and_kd_ce_have_one_gradient():
    student, teacher = pair(0, 4, 5)
    one, other = (torch.func.grad(lambda x, f=f: f(x, teacher, temperature=3.0))(student) for f in (kl, kd_ce))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_the_reverse_of_kl_is_rkl():
    student, teacher = pair(0, 4, 5)
    assert rkl(student, teacher).item() == pytest.approx(kl(teacher, student, temperature=1.0).item(), rel=1e-12)


@pytest.mark.parametrize("t_squared", [True, False])
def test_the_ends_of_jsd_are_the_two_kl(t_squared):
    student, teacher = pair(0, 4, 5)
    common = {"temperature": 3.0, "t_squared": t_squared}
    assert jsd(student, teacher, beta=0, **common).item() == kl(student, teacher, **common).item()
    assert jsd(student, teacher, beta=1, **common).item() == rkl(student, teacher, **common).item()


def test_jsd_near_its_ends_is_a_share_of_the_two_kl():
    student, teacher = pair(0, 4, 5)
    near = 1e-6
    forward = jsd(student, teacher, beta=near).item() / near
    reverse = jsd(student, teacher, beta=1 - near).item() / near
    assert forward == pytest.approx(kl(student, teacher, temperature=1.0).item(), rel=1e-4)
    assert reverse == pytest.approx(rkl(student, teacher).item(), rel=1e-4)


@settings(deadline=None)
@given(seed=SEEDS, beta=st.floats(0.01, 0.99), scale=st.floats(0.1, 100))
def test_jsd_is_bounded_by_the_entropy_of_its_shares(seed, beta, scale):
    student, teacher = pair(seed, 3, 4, scale=scale)
    bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert -1e-12 <= jsd(student, teacher, beta=beta).item() <= bound + 1e-12


@settings(deadline=None)
@given(seed=SEEDS, beta=st.sampled_from([0.0, 1.0]) | st.floats(0.01, 0.99))
def test_jsd_changes_sides_with_beta(seed, beta):
    student, teacher = pair(seed, 3, 4)
    other = jsd(teacher, student, beta=1 - beta).item()
    assert jsd(student, teacher, beta=beta).item() == pytest.approx(other, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("loss", "plain"), [(skl, kl), (srkl, rkl)])
def test_without_skew_it_is_the_plain_one(loss, plain):
    student, teacher = pair(0, 4, 5)
    expected = plain(student, teacher, temperature=2.0).item()
    assert loss(student, teacher, temperature=2.0, skew=0.0).item() == expected


@settings(deadline=None)
@given(seed=SEEDS, skew=st.floats(0.01, 0.99), scale=st.floats(0.1, 100))
def test_skew_bounds_the_divergence(seed, skew, scale):
    student, teacher = pair(seed, 3, 4, scale=scale)
    for loss, plain in ((skl, kl), (srkl, rkl)):
        found = loss(student, teacher, skew=skew).item()
        assert -1e-12 <= found <= -math.log(skew) + 1e-12
        assert found <= (1 - skew) * plain(student, teacher, temperature=1.0).item() + 1e-12  # KL is convex


@pytest.mark.parametrize("options", [SKL, SRKL])
@pytest.mark.parametrize("skew", [-0.1, 1.0])
def test_a_skew_that_leaves_nothing_of_the_other_is_refused(options, skew):
    with pytest.raises(ValueError, match="'skew' must be"):
        options(skew=skew)


@settings(deadline=None)
@given(seed=SEEDS, scale=st.floats(0.1, 100))
def test_tvd_is_a_bounded_symmetric_distance(seed, scale):
    student, teacher = pair(seed, 3, 4, scale=scale)
    found = tvd(student, teacher).item()
    assert 0 <= found <= 1 + 1e-12
    assert found == pytest.approx(tvd(teacher, student).item(), rel=1e-12)
    assert found <= math.sqrt(kl(student, teacher, temperature=1.0).item() / 2) + 1e-12  # Pinsker


@LOSSES
def test_t_squared_is_a_factor(loss):
    student, teacher = pair(0, 4, 5)
    plain = loss(student, teacher, temperature=4.0, t_squared=False).item()
    assert loss(student, teacher, temperature=4.0).item() == pytest.approx(16 * plain, rel=1e-12)


@LOSSES
def test_a_temperature_for_each_row(loss):
    student, teacher = pair(0, 2, 3, 5)
    temperatures = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
    rows = [
        loss(student[i, j][None], teacher[i, j][None], temperature=temperatures[i, j].item()).item()
        for i in range(2)
        for j in range(3)
    ]
    assert loss(student, teacher, temperature=temperatures).item() == pytest.approx(sum(rows) / 6, rel=1e-12)


@LOSSES
def test_nearly_equal_distributions_keep_their_digits(loss):
    student, teacher = pair(0, 64, 32)
    teacher = student + 0.02 * teacher
    exact = loss(student, teacher).item()
    assert loss(student.float(), teacher.float()).item() == pytest.approx(exact, rel=1e-2)
