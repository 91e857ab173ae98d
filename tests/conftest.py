"""Tiny real models and data that all tests share, processes, and two ranks for what is distributed."""

import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import textwrap
import time
from pathlib import Path
from threading import Lock, Thread

import pytest
import torch
from torch import nn

import hookbrew_plugins
from hookbrew.plugin import catalogue

RANK, BORN = (Path(__file__).with_name(name) for name in ("rank.py", "born.py"))
PATIENCE = 600
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "hookbrew.cli",
        "hookbrew.run",
        "hookbrew_plugins",
        "pytest",
        "torch._dynamo",
        "torch.distributed.checkpoint",
        "torch.distributed.fsdp",
        "torch.utils.tensorboard",
    ]
)


@pytest.fixture(scope="session")
def pack():
    """The standard pack and nothing that happens to be installed."""
    return catalogue(discover=False, plugins=[hookbrew_plugins])


@pytest.fixture(autouse=True)
def seeded():
    """Weights and data of a test do not depend on the tests before it."""
    torch.manual_seed(0)


class Tagger(nn.Module):
    """Embeds tokens, (B, L), mixes them by two blocks of width D, and scores C classes per token or per sample."""

    def __init__(self, width=8, classes=3, *, pooled=True, dropout=0.0):
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)
        self.pooled = pooled

    def forward(self, input_ids, attention_mask=None):
        hidden = self.embed(input_ids)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        hidden = self.dropout(hidden)
        if self.pooled:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            hidden = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return self.head(hidden)


@pytest.fixture(scope="session")
def tagger():
    return Tagger


@pytest.fixture(scope="session")
def batches():
    """batches(lengths...): padded token batches with masks, labels per sample and per token."""

    def make(*groups, seed=0):
        generator = torch.Generator().manual_seed(seed)
        made = []
        for lengths in groups:
            mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
            ids = torch.randint(1, 20, mask.shape, generator=generator) * mask
            tags = torch.randint(0, 3, mask.shape, generator=generator).where(mask.bool(), torch.tensor(-100))
            labels = torch.randint(0, 3, (len(lengths),), generator=generator)
            made.append({"input_ids": ids, "attention_mask": mask, "labels": labels, "tags": tags})
        return made

    return make


class Forked:
    """Code in a process of its own, as of `python -c`, with what tests use of subprocess.Popen.

    Its own are its signals, exit code, limits, session and environment. A server has imported torch and hookbrew once,
    and forks: a start costs no seconds. Where these imports are the point, it is not for it.
    """

    _lock = Lock()  # a start asks how all others are, and two threads must not ask at one time

    def __init__(self, code, *arguments, environment=None):
        readers, writers = zip(*(FORKS.Pipe(duplex=False) for _ in range(2)), strict=True)
        names = {
            "CODE": textwrap.dedent(code),
            "ARGUMENTS": [str(argument) for argument in arguments],
            "ENVIRONMENT": {**os.environ, **(environment or {})},
            "PIPES": writers,
        }
        self._process = FORKS.Process(target=runpy.run_path, args=(str(BORN), names))
        with self._lock:
            self._process.start()
        for writer in writers:
            writer.close()
        self.pid = self._process.pid
        self._said = {}
        self._threads = [Thread(target=self._read, args=pair, daemon=True) for pair in enumerate(readers)]
        for thread in self._threads:
            thread.start()

    def _read(self, number, reader):
        with reader, open(reader.fileno(), encoding="utf-8", errors="replace", closefd=False) as file:
            self._said[number] = file.read()

    @property
    def returncode(self):
        """None while it runs; minus the number of a signal that ended it."""
        with self._lock:
            return self._process.exitcode

    def poll(self):
        return self.returncode

    def send_signal(self, name):
        if self.returncode is None:
            os.kill(self.pid, name)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout=120):
        """What it wrote to stdout and to stderr, when it has ended."""
        deadline = time.monotonic() + timeout
        while self.returncode is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("forked", timeout)
            time.sleep(0.01)
        for thread in self._threads:
            thread.join()
        return self._said[0], self._said[1]

    def completed(self):
        """As subprocess.run gives it."""
        out, err = self.communicate()
        return subprocess.CompletedProcess("forked", self.returncode, out, err)


@pytest.fixture(scope="session")
def forks():
    """The class Forked; who makes one ends it."""
    return Forked


@pytest.fixture
def forked(forks):
    """forked(code, *arguments): a Forked, killed when the test is over."""
    processes = []

    def start(code, *arguments, **options):
        processes.append(forks(code, *arguments, **options))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def launch(script, folder):
    """What each of two ranks found; an AssertionError with what the rank said that failed first."""
    processes = []
    try:
        for rank in range(2):
            code = f"import runpy; runpy.run_path({str(RANK)!r}, run_name='__main__')"
            processes.append(Forked(code, script, rank, folder, environment={"OMP_NUM_THREADS": "1"}))
        deadline = time.monotonic() + PATIENCE
        while (codes := [process.poll() for process in processes]) != [0, 0]:
            late = time.monotonic() > deadline
            if late or any(codes):
                failed = [rank for rank, code in enumerate(codes) if code or late]
                raise AssertionError(f"ranks ended with {codes}\n{told(processes, failed)}")
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def told(processes, ranks):
    """The end of what these ranks said; they are killed if they still run."""
    texts = []
    for rank in ranks:
        processes[rank].kill()
        texts.append(f"rank {rank}:\n{''.join(processes[rank].communicate())[-3000:]}")
    return "\n".join(texts)


@pytest.fixture(scope="session")
def launched(tmp_path_factory):
    """launched(script)(case): the results of both ranks. Two processes run all cases of a script once.

    prepare: is given the folder of the script before they do.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("torch without gloo")

    def start(script, prepare=None):
        folder = tmp_path_factory.mktemp(script.stem)
        if prepare is not None:
            prepare(folder)
        results = launch(script, folder)
        return lambda case: [result[case] for result in results]

    return start
