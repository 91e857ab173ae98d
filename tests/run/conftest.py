"""A user's folder: a module with models and data, and a configuration that trains in a second."""

import signal
import subprocess
import sys
import textwrap
import time

import pytest
from click.testing import CliRunner

import hookbrew_plugins
from hookbrew.errors import PreemptedError
from hookbrew.plugin import catalogue
from hookbrew.run import resume, run
from tests.run import striking

MODULE = '''
import torch
from torch import nn


class Net(nn.Module):
    """Embeds tokens, (B, L), and scores 3 classes."""

    def __init__(self, width=8, classes=3):
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids, attention_mask=None):
        places = 1 / (1 + torch.arange(input_ids.shape[1]))
        hidden = self.embed(input_ids) * places[:, None]
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        mask = attention_mask[..., None]
        return self.head((hidden * mask).sum(1) / mask.sum(1))


def samples(number=24, seed=0, labels=True):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(number):
        ids = torch.randint(1, 20, (int(torch.randint(2, 7, (), generator=generator)),), generator=generator)
        sample = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        made.append(sample | ({"labels": int(ids[0]) % 3} if labels else {}))
    return made


def broken():
    return {}["missing"]
'''

CONFIG = """\
output = "runs/toy"
pythonpath = ["."]
seed = 3

[teacher]
factory = "toyland:Net"
width = 12

[student]
factory = "toyland:Net"

[data]
train = { factory = "toyland:samples" }
evaluate = { factory = "toyland:samples", number = 9, seed = 1 }
batch_size = 4
pad = { input_ids = 0, attention_mask = 0 }

[train]
epochs = 2
log_every = 3

[optimizer]
type = "AdamW"
lr = 1e-2

[lr_schedule]
type = "linear"
warmup = 0.1

[[losses]]
type = "kd_ce"
temperature = 2
weight = { type = "linear_decay" }

[[losses]]
type = "hidden_mse"
student = "layers[*]"
teacher = "layers[*]"
projection = "linear"

[[callbacks]]
type = "tensorboard"
"""


DROPPING = '''

class Dropping(Net):
    """Draws random numbers in each forward pass, and keeps running means."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.3)

    def forward(self, input_ids, attention_mask=None):
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(self.drop(hidden)))
        mask = attention_mask[..., None]
        return self.head(self.norm((hidden * mask).sum(1) / mask.sum(1)))


class Noisy(list):
    """Samples that are drawn anew each time, by every generator there is."""

    def __getitem__(self, index):
        sample = dict(super().__getitem__(index))
        draws = [torch.randint(20, ()), torch.tensor(random.randrange(20)), torch.tensor(np.random.randint(20))]
        sample["input_ids"] = torch.cat([sample["input_ids"], torch.stack(draws)])
        sample["attention_mask"] = torch.ones_like(sample["input_ids"])
        return sample


def noisy():
    return Noisy(samples())
'''

BASE = ["student.factory=toyland:Dropping", "data.train.factory=toyland:noisy", "train.log_every=2"]
STRIKES = "{ type = 'strike', at = %s }, { type = 'remember' }, { type = 'checkpoint', every = %d }"


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The folder, as the working directory, with toy.toml; modules imported from it are forgotten afterwards."""
    sys.modules.pop("toyland", None)  # of another folder
    (tmp_path / "toyland.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "toy.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("toyland", None)


@pytest.fixture
def edit(toy):
    """edit(old, new): a mistake in toy.toml."""

    def change(old, new):
        text = (toy / "toy.toml").read_text()
        assert text.count(old) == 1, old
        (toy / "toy.toml").write_text(text.replace(old, new))

    return change


@pytest.fixture
def hookbrew():
    """hookbrew("run", "toy.toml"): a command in this process."""
    from hookbrew.cli import main

    def call(*arguments):
        return CliRunner().invoke(main, [*arguments], prog_name="hookbrew")

    return call


@pytest.fixture
def known():
    """The standard pack, and the plugin that strikes."""
    return catalogue(discover=False, plugins=[hookbrew_plugins, striking])


@pytest.fixture
def folder(toy):
    """The folder of toy.toml, whose student drops, and whose samples draw."""
    text = (toy / "toyland.py").read_text()
    (toy / "toyland.py").write_text(
        text.replace("import torch\n", "import random\nimport numpy as np\nimport torch\n", 1) + DROPPING
    )
    return toy


@pytest.fixture
def train(folder, known):
    """train("name", [steps at which it is struck], *sets): the folder of a run that is done."""

    def make(name, at=(), *sets, every=100, base=BASE):
        callbacks = f"callbacks=[{STRIKES % (list(at), every)}]"
        output = folder / f"runs/{name}"
        sets = [*base, *sets, callbacks, f"output=runs/{name}"]
        for place in range(len(at) + 1):
            try:
                if place == 0:
                    run("toy.toml", sets, catalogue=known, quiet=True)
                else:
                    resume(output, catalogue=known, quiet=True, require="exact")
            except PreemptedError:
                assert place < len(at)
            else:
                assert place == len(at)
        return output

    return make


@pytest.fixture
def started(toy, forked):
    """started(*arguments): a process that trains in a group of its own, and has logged a row; killed afterwards.

    fresh: it is a whole `python -m hookbrew`, where it matters how Python itself ends.
    """
    processes = []

    def start(*arguments, rows="metrics.jsonl", fresh=False):
        words = ["run", "toy.toml", *arguments]
        if fresh:
            process = subprocess.Popen(
                [sys.executable, "-m", "hookbrew", *words],
                stderr=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                # a test run in the background inherits an ignored SIGINT; a terminal's command does not
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                start_new_session=True,
            )
            processes.append(process)
        else:
            process = forked("from hookbrew.cli import main\nmain()", *words)
        file, deadline = toy / "runs/toy" / rows, time.monotonic() + 120
        while not (file.exists() and file.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()
