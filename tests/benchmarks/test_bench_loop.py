"""The benchmark of the loop: both loops agree, and it writes what it measured. No time is judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "loop.py"
FITS = {"fit", "fit, metrics and progress"}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The JSON of a short run, and what was printed."""
    file = tmp_path_factory.mktemp("bench") / "loop.json"
    command = [sys.executable, str(SCRIPT), "--rounds", "2", "--shapes", "tiny", "--json", str(file)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(file.read_text(encoding="utf-8")), done.stdout


def test_times(report):
    lines = report[0]["shapes"]["tiny"]
    assert set(lines) == {"by hand", "by hand again", *FITS}
    assert {name for name, line in lines.items() if "target" in line} == FITS
    assert all(lines[name]["verdict"] in ("met", "missed") for name in FITS)
    assert all(0 < line["low"] <= line["middle"] <= line["high"] for line in lines.values())
    above = [line["microseconds"] for line in lines.values()]
    assert all(one["low"] <= one["middle"] <= one["high"] for one in above)
    assert above[0] == {"middle": 0, "low": 0, "high": 0}
    assert lines["by hand"]["fastest"] == lines["by hand"]["middle"] == 1


def test_operations(report):
    """Counted, so the same wherever it runs: a loss or a loop that makes more of them is slower at tiny sizes."""
    lines = report[0]["shapes"]["tiny"]
    hand, fit = (lines[name]["operations"] for name in ("by hand", "fit"))
    assert fit <= hand + 5


def test_what_is_printed(report):
    assert set(report[0]["machine"]) == {"date", "device", "cuda", "threads", "python", "torch"}
    for text in ("4 x 8 tokens; 2 rounds of 100 steps", "by hand again", "operations"):
        assert text in report[1]
