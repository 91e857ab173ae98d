"""A user's folder: a module with models and data, and a configuration that trains in a second."""

import sys
import textwrap

import pytest
from click.testing import CliRunner

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


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The folder, as the working directory, with toy.toml; modules imported from it are forgotten afterwards."""
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
