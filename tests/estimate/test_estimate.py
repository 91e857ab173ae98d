"""What is estimated for several processes, beside what these have."""

from pathlib import Path

import pytest

from tests.estimate import towers
from tests.estimate.peaks import peak
from tests.estimate.towers import HEAVY

NEAR = 0.15
"""How far an estimate may be off."""


@pytest.fixture(scope="module")
def ranks(launched):
    return launched(Path(__file__).with_name("ranks_estimate.py"), towers.prepare)


@pytest.mark.parametrize("heavy", HEAVY)
def test_memory_of_one_process(lines, pack, heavy):
    really = peak("tower.toml", HEAVY[heavy], pack)
    assert lines(*HEAVY[heavy], most=1)[1, "alone"].peak == pytest.approx(really, rel=NEAR)


@pytest.mark.parametrize("way", ["DDP", "FSDP2", "FSDP2, both"])
@pytest.mark.parametrize("heavy", HEAVY)
def test_memory_of_two_processes(lines, ranks, heavy, way):
    found = lines(*HEAVY[heavy])[2, way].peak
    for really in ranks(f"{heavy} {way}"):
        print(heavy, way, round(found / really, 3), found, really)
        assert found == pytest.approx(really, rel=NEAR)
