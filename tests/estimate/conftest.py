"""A folder with towers, and what a stage of it would need."""

import sys

import pytest

from hookbrew.config import read
from hookbrew.estimate import Hardware, estimated, measured
from hookbrew.plan import planned
from hookbrew.run import built
from tests.estimate import towers


@pytest.fixture
def tower(tmp_path, monkeypatch):
    """The folder, as the working directory."""
    towers.prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("towers_of", None)


KNOWN = {}
"""What was measured, by its settings: the same for all tests."""


@pytest.fixture
def found(tower, pack):
    """found(*sets): what was measured of tower.toml."""

    def make(*sets):
        if sets not in KNOWN:
            KNOWN[sets] = fresh(*sets)
        return KNOWN[sets]

    def fresh(*sets):
        plan = planned(read("tower.toml", [*sets]), pack, quiet=True)
        with built(plan, pack) as made:
            return measured(made[0])

    return make


@pytest.fixture
def lines(found):
    """lines(*sets): the lines for up to 2 processes, by their way."""

    def make(*sets, most=2, **hardware):
        on = Hardware(**{"memory": None, "bandwidth": 1e9, **hardware})
        return {(line.processes, line.way): line for line in estimated(found(*sets), on, most).lines}

    return make
