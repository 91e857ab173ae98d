"""The small distillations: each passes all checks and trains by its command, and its student learns what it says."""

import json
import shutil
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from hookbrew.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"
TEACHERS = {"teachers": ["teachers.a", "teachers.b"], "tasks": ["tasks.trec.teacher"]}
"""Tables of teachers, where there is not the one."""
LEARNED = {
    "teachers": {"accuracy": 0.7},
    "tasks": {"trec/accuracy": 0.7, "sms/accuracy": 0.95},
    "spans": {"accuracy": 0.65, "exact": 0.4},
    "tags": {"accuracy": 0.8, "f1": 0.7},
    "images": {"accuracy": 0.75},
    "language": {"accuracy": 0.3},
}
"""What a held-out metric must reach at least: well above the most frequent answer, and below what was measured."""
TERMS = {
    "teachers": {"kd_ce", "hidden_mse"},
    "tasks": {"trec/kd_ce", "trec/hidden_mse", "sms/ce"},
    "spans": {"kd_ce/0", "kd_ce/1", "attention_kl/0", "attention_kl/1"},
    "tags": {"kd_ce"},
    "images": {"dist", "at/0", "at/1", "ce"},
    "language": {"kd_ce", "ce"},
}
"""What the rows of metrics name, whatever else they have."""


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """A copy without the runs of others, to be in."""
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("runs", "__pycache__"))
    monkeypatch.chdir(tmp_path / "examples")
    return tmp_path / "examples"


def trained(name, *sets):
    """The rows of metrics that `hookbrew run` left."""
    done = CliRunner().invoke(main, ["run", f"{name}.toml", "--quiet", *sets], prog_name="hookbrew")
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in Path("runs", name, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", TERMS)
def test_each_trains_by_its_command(examples, name):
    """Eight steps, from a teacher that had two."""
    sets = [f"{table}.steps=2" for table in TEACHERS.get(name, ["teacher"])]
    sets += ["train.steps=8", "train.log_every=1"]
    rows = trained(name, *(part for each in sets for part in ("-s", each)))
    assert {key for row in rows for key in row} >= {f"loss/{term}" for term in TERMS[name]}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNED)
def test_each_student_learns(examples, name):
    last = trained(name)[-1]
    for metric, least in LEARNED[name].items():
        assert last[f"eval/{metric}"] >= least, last


def test_the_table_has_every_file():
    """examples/README.md names all of them."""
    table = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.glob("*.toml"):
        tomllib.loads(path.read_text())
        assert f"[{path.name}]({path.name})" in table
