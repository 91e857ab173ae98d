"""Processes that write a cache: several at once, killed ones, and one whose disk is full."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hookbrew.cache import Cache
from tests.cache.building import SAMPLES, build, lost, reported, same, sample

ROOT = Path(__file__).parents[2]


@pytest.fixture
def started(tmp_path):
    """started(arguments...): a process of its own."""
    running = []

    def start(*arguments):
        command = [sys.executable, "-W", "error", "-m", "tests.cache.building", *map(str, arguments)]
        running.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def ended(process):
    """What it printed."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def struck(started, folder, kills, seed, most):
    found = json.loads(ended(started("strike", folder, kills, seed, most)))
    assert found["killed"] >= kills
    assert found["lost"] == []
    assert found["put"] > 0
    number = max(reported(folder)) + 5
    build(folder, 0, number)
    assert lost(folder) == []
    whole = Cache(folder)
    assert all(same(whole, *sample(n)) for n in range(number))
    assert len(whole) >= number * SAMPLES
    records = sum(len(shard.rows) for shard in whole.shards.values())
    assert records == len(whole), "what was there was written again"
    return found["torn"]


def test_a_process_that_is_killed_loses_nothing_that_was_put(started, tmp_path):
    struck(started, tmp_path / "cache", 6, 0, 6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_killed_at_many_moments(started, tmp_path, seed):
    assert struck(started, tmp_path / "cache", 25, seed, 250), "never inside a write"


def test_two_processes_write_at_once(started, tmp_path):
    """From the first moment on, and partly the same; a third one reads meanwhile."""
    folder = tmp_path / "cache"
    both = [started(folder, 0, 120), started(folder, 80, 200)]
    while not (folder / "cache.json").exists():
        assert all(process.poll() is None for process in both)
    reader, samples = Cache(folder), [sample(n) for n in range(200)]
    while any(process.poll() is None for process in both):
        reader.refresh()
        there = [each for each in samples if not reader.missing(each[0])]
        assert all(same(reader, *each) for each in there[-5:])
        assert reader.wrong == []
    for process in both:
        assert ended(process) == ""
    reader.refresh()
    assert len(reader.shards) == 2
    assert len(reader) == 200 * SAMPLES
    assert reported(folder) == {*range(200)}
    assert lost(folder) == []


def test_a_full_disk_is_told_and_what_was_put_stays(started, tmp_path):
    folder = tmp_path / "cache"
    limit = 300_000
    told = ended(started(folder, 0, 60, limit)).strip()
    assert told == f"the cache {folder} cannot be written: File too large; what is in it stays"
    (shard,) = Cache(folder).shards.values()
    assert os.path.getsize(f"{shard.path}.data") == limit
    assert 0 < len(reported(folder)) < 60
    assert lost(folder) == []
    build(folder, 0, 60)
    assert lost(folder) == []
    assert len(Cache(folder)) == 60 * SAMPLES
