"""A package of somebody else, installed for real: its four kinds of components are found and used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # pip installs a package
PLUGIN = Path(__file__).parents[2] / "examples" / "plugin"

USE = """
[[losses]]
type = "gap"
student = "layers[0]"
teacher = "layers[0]"
projection = "tanh"
scale = 2.0
weight = { type = "half_sine", base = 0.5 }

[[augments]]
type = "reverse"
probability = 0.5

[[callbacks]]
type = "patience"
evaluations = 1
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment of a process for which examples/plugin is installed."""
    site = tmp_path_factory.mktemp("site")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(site),
    ]
    subprocess.run([*pip, str(PLUGIN)], check=True)
    return {**os.environ, "PYTHONPATH": str(site)}


def call(environment, *arguments):
    command = [sys.executable, "-m", "hookbrew", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_it_is_listed(installed):
    rows = json.loads(call(installed, "plugins", "list", "--json").stdout)
    text = json.dumps(rows)
    assert "hookbrew-gap" in text
    for name in ("gap", "half_sine", "reverse", "patience"):
        assert name in text


def test_a_run_uses_all_four(toy, installed):
    with (toy / "toy.toml").open("a") as file:
        file.write(USE)
    done = call(installed, "run", "toy.toml", "-s", "train.epochs=50", "-s", "train.log_every=1")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (toy / "runs/toy/metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if "loss" in row]
    assert trained[0]["loss/gap"] > 0
    assert trained[0]["weight/gap"] == 0
    assert max(row["weight/gap"] for row in trained) <= 0.5
    assert trained[1]["weight/gap"] > 0
    assert "accuracy has not risen for 1 evaluations" in done.stdout
    assert json.loads((toy / "runs/toy/env.json").read_text())["plugins"]["gap"] == "0.1.0"


def test_the_augmenter_changes_what_is_trained_on(toy, installed):
    losses = []
    for name, extra in (("with", USE), ("without", USE.replace("probability = 0.5", "probability = 0.0"))):
        (toy / f"{name}.toml").write_text((toy / "toy.toml").read_text().replace("runs/toy", f"runs/{name}") + extra)
        done = call(installed, "run", f"{name}.toml", "-s", "train.epochs=1")
        assert done.returncode == 0, done.stderr
        rows = (toy / f"runs/{name}/metrics.jsonl").read_text().splitlines()
        losses.append(json.loads(rows[-2])["loss/hidden_mse/0"])
    assert losses[0] != losses[1]


def test_without_plugins_the_name_is_unknown(toy, installed):
    with (toy / "toy.toml").open("a") as file:
        file.write(USE)
    done = call(installed, "--no-plugins", "check", "toy.toml")
    assert done.returncode == 2
    assert "no loss called 'gap'" in done.stderr


def test_its_own_tests_pass(installed):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(PLUGIN / "tests")]
    done = subprocess.run(command, env=installed, capture_output=True, text=True, check=False, cwd=PLUGIN)
    assert done.returncode == 0, done.stdout
