"""Two processes use one cache, build it together, and train the student that they train without it."""

import os
import sys
from pathlib import Path

import pytest

import hookbrew_plugins
from hookbrew.cache import Cache
from hookbrew.plugin import catalogue
from hookbrew.run import run
from tests.run import taught
from tests.run.test_cache import LOOKS, difference


@pytest.fixture(scope="module")
def place():
    return []


@pytest.fixture(scope="module")
def ranks(launched, place):
    def prepare(folder):
        place.append(folder)
        (folder / "taughtland.py").write_text(taught.MODULE)
        (folder / "toy.toml").write_text(taught.CONFIG)
        here, known = Path.cwd(), catalogue(discover=False, plugins=[hookbrew_plugins])
        os.chdir(folder)
        try:
            run("toy.toml", ["cache.folder=one", "output=runs/one"], catalogue=known, quiet=True)
        finally:
            os.chdir(here)
            sys.modules.pop("taughtland", None)

    return launched(Path(__file__).with_name("ranks_cache.py"), prepare)


@pytest.fixture
def runs(ranks, place, monkeypatch):
    monkeypatch.chdir(place[0])
    return place[0]


def test_both_keep_their_own_part_and_read_that_of_the_other(ranks, runs):
    assert ranks("plain") == [1 + 18] * 2
    assert ranks("first") == [LOOKS + 6] * 2
    assert ranks("second") == [LOOKS] * 2
    assert difference("two-plain", "two-first") == difference("two-plain", "two-second") == 0
    found = Cache(runs / "two")
    assert len(found) == 26
    assert found.verify() == []


def test_what_one_process_kept_serves_two(ranks, runs):
    assert ranks("of one") == [LOOKS] * 2
    assert difference("two-plain", "two-of-one") == 0
    assert difference("one", "two-of-one") < 1e-6


def test_a_batch_of_which_one_has_nothing(ranks, runs):
    """It runs a sample of the other one along, which is kept once."""
    assert all(LOOKS < ran < LOOKS + 18 for ran in ranks("uneven cached"))
    assert difference("two-uneven", "two-uneven-cached") == 0


def test_they_build_it_together(ranks, runs):
    (first, second) = ranks("built")
    assert first == second == {"fresh": 24, "ran": LOOKS + 6}
    assert len(Cache(runs / "built")) == 24
    assert ranks("from built") == [LOOKS] * 2
    assert difference("two-plain", "two-built") == 0


def test_fits_of_both_use_one_cache(ranks, runs):
    """Each has its own part of the data, three batches an epoch."""
    found = {case: ranks(case) for case in ("fit", "fit first", "fit second")}
    assert [[each["ran"] for each in both] for both in found.values()] == [[1 + 9] * 2, [LOOKS + 3] * 2, [LOOKS] * 2]
    assert len({str(each["student"]) for both in found.values() for each in both}) == 1
    assert len(Cache(runs / "fitted")) == 24


@pytest.mark.parametrize("case", ["refused", "fit refused"])
def test_both_refuse_a_cache_of_something_else(ranks, case):
    for found in ranks(case):
        assert found["error"] == "CacheError"
        assert "is of something else: weights " in found["text"]
