"""The benchmark of a big vocabulary: all variants agree, and it writes what it measured. No time is judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "vocabulary.py"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The JSON of a short run, and what was printed."""
    file = tmp_path_factory.mktemp("bench") / "vocabulary.json"
    command = [sys.executable, str(SCRIPT), "--rounds", "2", "--tiny", "--rows", "4", "--json", str(file)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(file.read_text(encoding="utf-8")), done.stdout


def test_times(report):
    lines = report[0]["steps"]
    assert set(lines) == {"by hand", "by hand again", "kl, dense", "kl, chunked", "kl, chunked, 4 rows"}
    assert all(0 < line["low"] <= line["middle"] <= line["high"] for line in lines.values())
    assert lines["by hand"]["fastest"] == lines["by hand"]["middle"] == 1


def test_bytes(report):
    """Counted, so the same wherever it runs."""
    lines = report[0]["steps"]
    assert lines["by hand"]["peak"] == lines["by hand again"]["peak"]
    assert lines["kl, chunked, 4 rows"]["peak"] <= lines["kl, chunked"]["peak"] <= lines["kl, dense"]["peak"]


def test_trainings(report):
    lines = report[0]["trainings"]
    assert set(lines) == {"by hand", "by hand again", "fit, whole logits", "fit, chunked"}
    assert all(0 < line["low"] <= line["middle"] <= line["high"] for line in lines.values())
    assert lines["fit, chunked"]["peak"] < lines["fit, whole logits"]["peak"]


def test_what_is_printed(report):
    assert set(report[0]["machine"]) == {"date", "device", "cuda", "threads", "python", "torch"}
    assert "500 classes, 2 x 16 tokens; 2 rounds" in report[1]
