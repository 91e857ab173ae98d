"""Averages and freezing of students that two ranks share: the same as of a plain one."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def trainings(launched):
    """trainings(case): what both ranks found."""
    return launched(Path(__file__).with_name("ranks_callbacks.py"))


@pytest.mark.parametrize("callback", ["ema", "freeze"])
@pytest.mark.parametrize("wrapped", ["ddp", "fsdp", "fsdp root"])
def test_wrapped_students_are_as_plain_ones(trainings, wrapped, callback):
    for evaluations, losses, weights, moved in trainings(f"{wrapped} {callback}"):
        assert evaluations == 4
        assert losses < 1e-6, "of evaluations, which are counted in float32"
        assert weights < 1e-12
        assert moved > 1e-3
