"""torchrun, and what it does with processes that die, hang, or are told to end."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests import rank
from tests.run import compare
from tests.run.conftest import DROPPING

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo"),
]
ROOT = Path(__file__).parents[2]
PATIENCE = 400
"""Seconds; a rank that hangs does so for 600."""
COMMAND = """
import sys

import hookbrew_plugins
from hookbrew.cli.context import Context
from hookbrew.cli.report import guarded
from hookbrew.plugin import catalogue
from hookbrew.run import run
from tests.run import striking_ranks

KNOWN = catalogue(discover=False, plugins=[hookbrew_plugins, striking_ranks])
sys.exit(guarded(lambda: run("toy.toml", sys.argv[1:], catalogue=KNOWN, quiet=True, going=True), Context()))
"""
EVERY = "{type='checkpoint', every=3}"
UNEVEN = ["data.train.number=26", "data.batch_size=5", "train.accumulate=2", "train.epochs=4"]


@pytest.fixture
def folder(toy):
    """The toy whose student drops, with a command that knows the plugin that strikes."""
    module = (toy / "toyland.py").read_text()
    imports = "import random\nimport numpy as np\nimport torch\n"
    (toy / "toyland.py").write_text(module.replace("import torch\n", imports, 1) + DROPPING)
    (toy / "command.py").write_text(COMMAND)
    return toy


@pytest.fixture
def torchrun(folder):
    """torchrun("name", *sets, processes=2, restarts=0): a process in a group of its own, ended afterwards."""
    started = []
    rank.loopback()

    def start(name, *sets, callbacks=EVERY, processes=2, restarts=0):
        meet = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
        options = [f"--nproc-per-node={processes}", f"--max-restarts={restarts}", *meet]
        sets = [*sets, f"output=runs/{name}", f"callbacks=[{callbacks}]"]
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                *options,
                "--rdzv-endpoint=localhost:0",
                "command.py",
                *sets,
            ],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def ended(process, code=0):
    """What it printed; with this exit code, and before one that hangs would be done."""
    text, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, text
    assert "terminate called" not in text, text
    return text


def finals(folder, *names):
    """The students at the end of some runs, as bytes."""
    return [(folder / f"runs/{name}/final/student.safetensors").read_bytes() for name in names]


@pytest.mark.parametrize("shard", ["none", "student"])
def test_a_rank_is_killed(folder, torchrun, shard):
    """torchrun starts all of them again, they go on from the last checkpoint, and end with equal bytes."""
    sets = [*UNEVEN, "student.factory=toyland:Dropping", "data.train.factory=toyland:noisy", f"train.shard='{shard}'"]
    sets = sets if shard == "none" else [*UNEVEN, f"train.shard='{shard}'"]
    ended(torchrun("whole", *sets))
    text = ended(torchrun("killed", *sets, callbacks=f"{EVERY}, {{type='die', at=8}}", restarts=2))
    assert "exitcode: -9" in text
    whole, killed = finals(folder, "whole", "killed")
    assert whole == killed
    assert compare.rows(folder / "runs/whole") == compare.rows(folder / "runs/killed")


def test_three_ranks_go_on_exactly(folder, torchrun):
    """torch changes the order of its sums after the first step, which shows from three ranks on."""
    sets = [*UNEVEN, "student.width=64", "teacher.width=65"]
    ended(torchrun("whole", *sets, processes=3))
    text = ended(torchrun("killed", *sets, callbacks=f"{EVERY}, {{type='die', at=5}}", processes=3, restarts=1))
    assert "exitcode: -9" in text
    assert len(set(finals(folder, "whole", "killed"))) == 1


def test_the_agent_is_told_to_end(folder, torchrun):
    """All ranks make a checkpoint of the same step; the run goes on from there, and ends with equal bytes."""
    ended(torchrun("whole", *UNEVEN))
    slow = f"{EVERY}, {{type='slow', seconds=0.3}}"
    process = torchrun("told", *UNEVEN, callbacks=slow)
    rows, deadline = folder / "runs/told/metrics.jsonl", time.monotonic() + PATIENCE
    while not (rows.exists() and rows.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    text = ended(process, 1)
    assert "SIGTERM came; stopped after step" in text
    assert '"preempted"' in (folder / "runs/told/status.json").read_text()
    ended(torchrun("told", *UNEVEN))
    assert len(set(finals(folder, "whole", "told"))) == 1


def test_a_rank_hangs(torchrun):
    """The others give up after train.timeout, and torchrun ends all of them."""
    process = torchrun("hangs", *UNEVEN, "train.timeout=5", callbacks="{type='hang', at=4}")
    text = ended(process, 1)
    assert re.search(r"[Tt]imed out|timeout|Connection closed", text)


def test_clean_exits(torchrun):
    """A wrapped student that is left at the end of a process makes gloo abort it, now and then."""
    for number in range(10):
        ended(torchrun(f"run-{number}", "train.epochs=1"))


def test_processes_that_nobody_watches(folder):
    """As srun starts them: their addresses are in the environment, and each has its own exit code."""
    rank.loopback()
    port = subprocess.check_output(
        [sys.executable, "-c", "import socket; s = socket.socket(); s.bind(('', 0)); print(s.getsockname()[1])"],
        text=True,
    ).strip()
    meet = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port, "PYTHONPATH": str(ROOT)}
    sets = [*UNEVEN, "callbacks=[{type='strike', at=[4]}]"]
    processes = [
        subprocess.Popen(
            [sys.executable, "command.py", *sets],
            env=os.environ | meet | {"RANK": str(number), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    told = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    assert [process.returncode for process in processes] == [75, 75], told
    assert "stopped after step 4 of 12" in told[0]
    assert "stopped after" not in told[1]


def test_options_that_torchrun_would_take(folder):
    """It reads what stands behind `-m hookbrew` too, and refuses what begins like two of its own."""
    from torch.distributed.run import get_args_parser

    given = [
        "run",
        "toy.toml",
        "--overwrite",
        "--resume",
        "--profile",
        "--profile-steps",
        "3",
        "--quiet",
        "-s",
        "train.epochs=1",
        "--set",
        "seed=1",
    ]
    for arguments in (given, ["resume", "runs/toy", "--require", "exact"]):
        parsed = get_args_parser().parse_args(["--nproc-per-node=2", "-m", "hookbrew", *arguments])
        assert parsed.training_script_args == arguments


def test_a_mistake_is_told_once(folder):
    rank.loopback()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "hookbrew", "run", "toy.toml"]
    done = subprocess.run(
        [*command, "-s", "train.epoch=3"], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("train.epoch: unknown key; did you mean 'epochs'?") == 1
