"""The benchmark of others: all compute the same loss, and it writes what it measured. No time is judged."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "peers.py"
JOBS = ("logits", "cached", "tiny")
"""Of each sort of models one; the benchmark itself checks all of them before it measures."""
BY_HAND = {"by hand", "by hand again", "by hand, fused AdamW"}
PEERS = {
    "TextBrewer": "textbrewer",
    "torchdistill": "torchdistill",
    "Lightning": "lightning",
    "Trainer of transformers": "accelerate",
}
LOWER = [f"hookbrew, teacher in {kind}" for kind in ("bf16", "fp16")]
OFF = dict.fromkeys(LOWER, 0.02)


def called(*arguments):
    """What it prints."""
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], check=True, capture_output=True, text=True)
    return done.stdout


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The JSON of the shortest run, and what was printed."""
    pytest.importorskip("transformers")
    file = tmp_path_factory.mktemp("bench") / "peers.json"
    printed = called(
        "--tiny", "--rounds", "1", "--jobs", ",".join(JOBS), "--teacher", "bf16", "fp16", "--json", str(file)
    )
    return json.loads(file.read_text(encoding="utf-8")), printed, file


@pytest.mark.parametrize("job", JOBS)
def test_all_compute_the_same_loss(report, job):
    found = report[0]["jobs"][job]
    assert set(found["lines"]) >= {*BY_HAND, "hookbrew"}
    assert found["away"].keys() == found["lines"].keys()
    assert {name: away for name, away in found["away"].items() if not away < OFF.get(name, 1e-4)} == {}


@pytest.mark.parametrize("peer", PEERS)
def test_each_peer_takes_part(report, peer):
    """In all jobs but those that it cannot do."""
    if find_spec(PEERS[peer]) is None:
        assert f"{peer} is left out: {PEERS[peer]} is not installed" in report[1]
        pytest.skip(f"{PEERS[peer]} is not installed")
    done = [job for job in JOBS if peer in report[0]["jobs"][job]["lines"]]
    assert done == [job for job in JOBS if (peer, job) != ("torchdistill", "cached")]
    assert report[0]["toolkits"][peer]


@pytest.mark.parametrize("job", JOBS)
def test_what_is_measured(report, job):
    found = report[0]["jobs"][job]
    assert all(line["low"] <= line["middle"] <= line["high"] for line in found["lines"].values())
    assert found["lines"]["by hand"]["middle"] == found["lines"]["by hand"]["memory"] == 1
    assert found["lines"]["by hand again"]["peak"] == found["lines"]["by hand"]["peak"] > 0  # counted, not timed
    assert found["lines"]["hookbrew"]["target"] == found["target"]
    assert all((name in found["lines"]) == (found["lower"] is not None) for name in LOWER)


def test_runs_are_put_together(report, tmp_path):
    """Tables and a plot out of earlier runs."""
    pytest.importorskip("matplotlib")
    folder = tmp_path / "bench"
    called("--read", str(report[2]), "--folder", str(folder))
    assert json.loads((folder / "peers.json").read_text(encoding="utf-8")) == report[0]
    lines = (folder / "peers.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "|  | " + " | ".join(JOBS) + " |"
    assert [line.split(" | ")[0] for line in lines].count("| hookbrew") == 2
    assert (folder / "peers.png").read_bytes()[:4] == b"\x89PNG"
