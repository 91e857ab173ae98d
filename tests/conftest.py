"""Tiny real models and data that all tests share, and two ranks for what is distributed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import hookbrew_plugins
from hookbrew.plugin import catalogue

RANK = Path(__file__).with_name("rank.py")
PATIENCE = 600


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


def launch(script, folder):
    """What each of two ranks found; an AssertionError with the log of the rank that failed first."""
    logs = [folder / f"{rank}.log" for rank in range(2)]
    processes = []
    try:
        for rank, log in enumerate(logs):
            with log.open("wb") as file:
                command = [sys.executable, str(RANK), str(script), str(rank), str(folder)]
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                processes.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment))
        deadline = time.monotonic() + PATIENCE
        while (codes := [process.poll() for process in processes]) != [0, 0]:
            late = time.monotonic() > deadline
            if late or any(codes):
                failed = [rank for rank, code in enumerate(codes) if code or late]
                told = "\n".join(f"rank {rank}:\n{logs[rank].read_text(errors='replace')[-3000:]}" for rank in failed)
                raise AssertionError(f"ranks ended with {codes}\n{told}")
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


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
