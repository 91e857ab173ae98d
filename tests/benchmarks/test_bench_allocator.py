"""The benchmark of the allocator runs, and writes what it measured. No time is judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "allocator.py"


def test_each_setting_has_a_process_of_its_own(tmp_path):
    pytest.importorskip("transformers")
    file = tmp_path / "allocator.json"
    command = [sys.executable, str(SCRIPT), "--tiny", "--rounds", "1", "--steps", "1", "--json", str(file)]
    subprocess.run(command, check=True, capture_output=True)
    jobs = json.loads(file.read_text(encoding="utf-8"))["jobs"]
    assert len(jobs) == 3
    for runs in jobs.values():
        assert [*runs[0]] == ["as it is", "hookbrew run", "all kept"]
        assert all(line["ms"] > 0 and line["MiB"] > 0 for line in runs[0].values())
