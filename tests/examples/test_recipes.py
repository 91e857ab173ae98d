"""Every recipe is checked and trained as it is, its layer numbers on models of the true depth, made narrow."""

import json
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

import hookbrew_plugins as pack_module
from hookbrew.cli import main
from hookbrew.config import read, staged, structure
from hookbrew.plugin import catalogue

RECIPES = Path(__file__).parents[2] / "examples/recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.toml"))

DATA = """
import torch

GENERATOR = torch.Generator()


def texts(labels=None, token_types=True):
    GENERATOR.manual_seed(0)
    made = []
    for number in range(8):
        ids = torch.randint(1, 60, (4 + number % 4,), generator=GENERATOR)
        sample = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        sample |= {"token_type_ids": torch.zeros_like(ids)} if token_types else {}
        made.append(sample | ({} if labels is None else {"labels": labels(number, ids)}))
    return made


def train():
    return texts(lambda number, ids: number % 2)


def masked_text():
    return texts(lambda number, ids: torch.where(torch.arange(len(ids)) % 3 == 1, ids, -100), token_types=False)


def text():
    return texts(token_types=False)


def cifar100():
    GENERATOR.manual_seed(0)
    return [(torch.randn(3, 8, 8, generator=GENERATOR), number * 7) for number in range(8)]


test, cifar100_test = train, cifar100
"""

MODELS = """
from torch import nn


class ResNet(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.fc = nn.Linear(width, 100)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.fc((x + self.block(x)).relu().mean((2, 3)))


def resnet32x4():
    return ResNet(8)


def resnet8x4():
    return ResNet(4)
"""

TEACHER = 'teacher.pretrained_model_name_or_path = "bert"\n'
COPIED = 'student.pretrained_model_name_or_path = "bert"\n'
BERT = "student.config = { vocab_size = 60, hidden_size = 48, intermediate_size = 16 }\n"
NARROW = {
    "distilbert": TEACHER + "student.config = { vocab_size = 60, dim = 96, hidden_dim = 16 }\n",
    "pkd": TEACHER + COPIED,
    "tinybert": TEACHER + 'student.pretrained_model_name_or_path = "tiny"\n',
    "minilm": TEACHER + BERT,
    "minilmv2": TEACHER + BERT,
    "textbrewer_t6": TEACHER + COPIED,
    "textbrewer_t3": TEACHER + COPIED,
    "textbrewer_t4tiny": TEACHER + BERT,
    "dkd": "",
    "dist": "",
}
"""What a user of a recipe writes: other models. Their depths are the recipe's own, or those of what it names."""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The modules and the pretrained models that the recipes name."""
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("recipes")
    (folder / "my_project").mkdir()
    (folder / "my_project/data.py").write_text(DATA)
    (folder / "my_project/models.py").write_text(MODELS)
    for name, depth, width in [("bert", 12, 96), ("tiny", 4, 24)]:
        size = {"hidden_size": width, "intermediate_size": 16, "vocab_size": 60, "max_position_embeddings": 16}
        BertForMaskedLM(BertConfig(num_hidden_layers=depth, **size)).save_pretrained(folder / name)
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "my_project"]:
        del sys.modules[name]


@pytest.fixture
def recipe(project, monkeypatch):
    """recipe("pkd"): a file that extends it with narrow models; of 2 steps, or as long as the recipe is."""
    monkeypatch.chdir(project)

    def write(name, *, short=True):
        length = 'train = { steps = 2, accumulate = 1, device = "cpu", log_every = 1 }\ndata.batch_size = 4\n'
        head = f'extends = "{RECIPES / name}.toml"\noutput = "runs/{name}"\npythonpath = ["."]\n'
        path = project / f"my_{name}.toml"
        path.write_text(head + NARROW[name] + (length if short else ""))
        return path.name

    return write


def command(*arguments):
    done = CliRunner().invoke(main, [*arguments], prog_name="hookbrew")
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_probe(recipe, project, name):
    file = recipe(name)
    print(command("check", file))
    print(command("run", file))
