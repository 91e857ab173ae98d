"""The benchmark of the taps: its variants agree, and it writes what it measured. No time is judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "taps.py"
TARGETS = {
    "hidden[*]",
    "hidden[*], not run()",
    "attention[-1]",
    "attention[-1], not read",
    "stop after 1 of 2",
    "stop after 2 of 2",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The JSON of a run with a tiny model, and what was printed."""
    file = tmp_path_factory.mktemp("bench") / "taps.json"
    command = [sys.executable, str(SCRIPT), "--tiny", "--rounds", "2", "--shapes", "2x8,1x4", "--json", str(file)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(file.read_text(encoding="utf-8")), done.stdout


def test_times(report):
    shapes = report[0]["shapes"]
    assert [(shape["batch"], shape["tokens"], shape["rounds"]) for shape in shapes] == [(2, 8, 2), (1, 4, 4)]
    for shape in shapes:
        times = shape["times"]
        assert {name for name, line in times.items() if "target" in line} == TARGETS
        assert all(line["verdict"] in ("met", "missed", "unclear") for line in times.values() if "target" in line)
        assert all(0 < line["low"] <= line["middle"] <= line["high"] for line in times.values())
        assert times["plain"]["fastest"] == times["plain"]["middle"] == 1
        assert times["stop after 1 of 2"]["share"] == 0.5
        start = times["stop after 0 of 2"]["middle"]
        assert times["stop after 1 of 2"]["expected"] == pytest.approx(start + (1 - start) / 2)


def test_bytes(report):
    """Exact, since they are counted: states are (2, 8, 32) floats, attention is (2, 4, 8, 8)."""
    state, pooled, scores, masks = 2 * 8 * 32 * 4, 2 * 32 * 4, 2 * 4 * 8 * 8 * 4, 2 * 8 * 8
    output = state + pooled
    found = report[0]["shapes"][0]["bytes"]
    assert found["plain"] == [output, output]
    assert found["output_hidden_states"] == found["hidden[*]"] == [output + 2 * state] * 2
    assert found["stop after 1 of 2"] == [state, state]
    assert found["q, k, v of the last layer"] == [output + 3 * state] * 2
    assert found["attention[-1], not read"] == [output + 2 * state + masks, output + scores]
    assert found["attention[-1]"] == [output + scores] * 2


def test_fixed_costs(report):
    assert set(report[0]["costs"]) >= {"a hook that records", "install and remove 4 taps", "resolve 4 paths"}
    assert set(report[0]["machine"]) == {"date", "device", "cuda", "threads", "python", "torch"}


def test_what_is_printed(report):
    for text in ("ratio to plain (noise floor", "stop after 2 of 2", "alive after a forward", "fixed costs"):
        assert text in report[1]
