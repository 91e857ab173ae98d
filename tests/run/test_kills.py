"""A run whose process is killed again and again, at moments that nobody chose, is the run that never was."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.run.compare import end, require_equal

HEAVY = '''

class Heavy(Dropping):
    """Has enough numbers that a checkpoint takes longer than a step."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(8, 300_000)

    def forward(self, input_ids, attention_mask=None):
        return super().forward(input_ids, attention_mask) + self.wide.bias.mean()
'''
SETS = [
    "student.factory=toyland:Heavy",
    "data.train.factory=toyland:noisy",
    "train.epochs=15",
    "train.log_every=1",
    "callbacks=[{ type = 'checkpoint', every = 2 }]",
]
ROOT = str(Path(__file__).parents[2])
KILLS = 10
"""How often each of two runs is killed."""


@pytest.fixture
def heavy(folder):
    """The folder of toy.toml, whose student is large; without evaluations, for what they import takes seconds."""
    text = (folder / "toy.toml").read_text()
    (folder / "toy.toml").write_text("".join(line for line in text.splitlines(True) if not line.startswith("evalu")))
    with (folder / "toyland.py").open("a") as file:
        file.write(HEAVY)
    return folder


@pytest.fixture
def begun(forked):
    """begun(output): a process that trains: from the beginning if there is no checkpoint yet, else from the last one.

    fresh: a whole `python -m hookbrew`, which takes seconds to start.
    """

    def begin(output, *, fresh=False):
        sets = [part for each in [*SETS, f"output='{output}'"] for part in ("-s", each)]
        words = ["run", "toy.toml", *sets, "--overwrite"]
        if newest(output):
            words = ["resume", str(output), "--require", "exact"]
        if not fresh:
            return forked("from hookbrew.cli import main; main()", *words, "--quiet")
        return subprocess.Popen(
            [sys.executable, "-m", "hookbrew", *words, "--quiet"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


def newest(output):
    """The step of the last checkpoint."""
    checkpoints = output / "checkpoints"
    names = os.listdir(checkpoints) if checkpoints.exists() else []
    return max((int(name[5:]) for name in names if name.startswith("step-")), default=0)


def awaited(running, happened):
    """Wait for something that a process is about to do; it must not have ended before."""
    while not happened():
        assert running.poll() is None, running.communicate()
        time.sleep(0.001)


def half(output):
    """Whether a checkpoint is being written, or was when the process died."""
    return any((output / "checkpoints").glob(".new-*"))


def struck(begun, output, draw, name, saving):
    """Begin or go on, and send a signal after one to three checkpoints more, once one is being written if that is
    asked for; whether one was when the process ended."""
    running, after = begun(output), newest(output) + 2 * draw.randint(1, 3)
    awaited(running, lambda: newest(output) >= after)
    if saving:
        awaited(running, lambda: half(output))
    time.sleep(draw.uniform(0, 0.005 if saving else 0.1))
    running.send_signal(name)
    _, err = running.communicate(timeout=60)
    assert running.returncode == (75 if name == signal.SIGTERM else -name), err
    return half(output)


def finished(begun, output):
    """Go on to the end."""
    running = begun(output)
    _, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    assert json.loads((output / "status.json").read_text())["status"] == "done"
    return output


def killed(begun, output, seed):
    """A run that is killed, as often inside a save as anywhere, and once while it starts; how many saves were cut."""
    draw, cut = random.Random(seed), 0
    for number in range(KILLS):
        cut += struck(begun, output, draw, signal.SIGKILL, saving=number % 2 == 0)
        if number == 4:
            starting = begun(output, fresh=True)
            time.sleep(draw.uniform(0, 3))
            starting.kill()
            starting.communicate()
    finished(begun, output)
    return cut


def terminated(begun, output, seed):
    """A run that is asked to end five times."""
    draw = random.Random(seed)
    for number in range(5):
        assert not struck(begun, output, draw, signal.SIGTERM, saving=number % 2 == 0)
        assert newest(output) == json.loads((output / "status.json").read_text())["step"]
    finished(begun, output)


@pytest.mark.slow
def test_killed_at_any_moment(heavy, begun):
    """Two runs are killed 10 times each while they train, one is asked to end 5 times; two processes at a time."""
    runs = heavy / "runs"
    with ThreadPoolExecutor(2) as pool:
        whole = pool.submit(finished, begun, runs / "whole")
        cuts = [pool.submit(killed, begun, runs / f"killed-{seed}", seed) for seed in range(2)]
        asked = pool.submit(terminated, begun, runs / "asked", 2)
    asked.result()
    assert min(cut.result() for cut in cuts) >= 3  # provably inside a save
    expected = end(whole.result())
    for name in ("killed-0", "killed-1", "asked"):
        found = end(runs / name)
        require_equal(found, expected)
        assert [row["step"] for row in found[2] if "loss" in row] == [*range(1, 91)]
        assert (runs / name / "final/student.safetensors").read_bytes() == (
            runs / "whole/final/student.safetensors"
        ).read_bytes()
    assert not [path for kind in ("new", "old") for path in runs.rglob(f".{kind}-*")]
