"""The benchmark of others: all compute the same loss, and it writes what it measured. No time is judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "peers.py"
BY_HAND = {"by hand", "by hand again", "by hand, fused AdamW"}


def test_all_do_the_same_work(tmp_path):
    pytest.importorskip("transformers")
    file = tmp_path / "peers.json"
    command = [sys.executable, str(SCRIPT), "--rounds", "1", "--steps", "4", "--works", "features", "--json", str(file)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    report = json.loads(file.read_text(encoding="utf-8"))["works"]["features"]
    assert set(report["lines"]) >= {*BY_HAND, "hookbrew"}
    assert report["away"].keys() == report["lines"].keys()
    assert max(report["away"].values()) < 1e-4
    assert all(line["low"] <= line["middle"] <= line["high"] for line in report["lines"].values())
    assert report["lines"]["by hand"]["middle"] == 1
    assert "is left out: accelerate" in done.stdout or "Trainer of transformers" in done.stdout
