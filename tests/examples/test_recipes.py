"""Every recipe is checked and trained as it is, its layer numbers on models of the true depth, made narrow."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

from hookbrew.cli import main
from hookbrew.config import read, staged, structure

RECIPES = Path(__file__).parents[2] / "examples/recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.toml"))

DATA = """
import torch


def texts(labels=None, token_types=True):
    made, generator = [], torch.Generator().manual_seed(0)
    for number in range(8):
        ids = torch.randint(1, 60, (4 + number % 4,), generator=generator)
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
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return [(image, number * 7) for number, image in enumerate(images)]


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
    """recipe("pkd"): a file that extends it, with narrow models, and two steps where it has no stages."""
    monkeypatch.chdir(project)

    def write(name):
        length = 'train = { steps = 2, accumulate = 1, device = "cpu", log_every = 1 }\ndata.batch_size = 4\n'
        head = f'extends = "{RECIPES / name}.toml"\noutput = "runs/{name}"\npythonpath = ["."]\n'
        path = project / f"my_{name}.toml"
        path.write_text(head + NARROW[name] + length)
        return path.name

    return write


def command(*arguments):
    done = CliRunner().invoke(main, [*arguments], prog_name="hookbrew")
    assert done.exit_code == 0, done.output
    return done.stdout


def layer(number):
    """What `check` calls hidden[number] of BERT."""
    return f"bert.encoder.layer.{number - 1}" if number else "bert.encoder.layer.0:in"


def hidden(name, pairs, more):
    """The lines of `check` for one table whose lists are matched one to one."""
    return [
        f"{name}/{i}: student {layer(s)} ~ teacher {layer(t)}, a mean over {more}" for i, (s, t) in enumerate(pairs)
    ]


def attention(name, pair, port, more="positions", at=""):
    """The line of `check` for the attentions of two layers."""
    ours, theirs = (f"{at}encoder.layer.{number}.attention.self:{port}" for number in pair)
    return f"{name}: student {ours} ~ teacher {theirs}, a mean over {more}"


def textbrewer(pairs, projection=""):
    """The lines of `check` for LN_hidden_mse and LN_hidden_smmd of TextBrewer's examples/matches/matches.py."""
    twice = [tuple(f"{layer(n)} and {layer(n)}" for n in pair) for pair in pairs]
    names = ["nst", *(f"nst_{number}" for number in range(2, len(pairs) + 1))]
    return [
        LOGITS,
        *hidden("hidden_mse", pairs, "positions" + projection),
        *(f"{n}: student {s} ~ teacher {t}, a mean over pairs" for n, (s, t) in zip(names, twice, strict=True)),
    ]


LOGITS = "kd_ce: student logits ~ teacher logits, a mean over samples"
LABELS = "ce: student logits, a mean over samples"
WIDER = ", Linear projection"
LAST = (5, 11)
T4 = [(0, 0), (1, 3), (2, 6), (3, 9), (4, 12)]
T6 = [(0, 0), (1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12)]
TERMS = {
    "distilbert": [
        "kd_ce: student logits ~ teacher logits, a mean over positions",
        "ce: student logits, a mean over positions",
        "cos: student distilbert.transformer.layer.5 ~ teacher bert.encoder.layer.11, a mean over positions",
    ],
    "pkd": [LOGITS, LABELS, *hidden("pkd", [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)], "samples")],
    "tinybert": [
        *(attention(f"attention_mse/{i}", (i, 3 * i + 2), "scores", "pairs", "bert.") for i in range(4)),
        *hidden("hidden_mse", T4, "positions" + WIDER),
        LOGITS,
    ],
    "minilm": [attention("attention_kl", LAST, "attn"), attention("value_relation", LAST, "v")],
    "minilmv2": [attention(name, LAST, name[0]) for name in ("queries", "keys", "values")],
    "textbrewer_t6": textbrewer(T6),
    "textbrewer_t3": textbrewer([(0, 0), (1, 4), (2, 8), (3, 12)]),
    "textbrewer_t4tiny": textbrewer(T4, WIDER),
    "dkd": [LABELS, "dkd: student logits ~ teacher logits, a mean over samples"],
    "dist": [LABELS, "dist: student logits ~ teacher logits, a mean over samples"],
}
"""What is compared with what: layers as the papers number them, counted from what the embeddings give."""

WEIGHTS = {"distilbert": [5, 2, 1], "pkd": [0.7, 0.3] + [500 / (5 * 768)] * 5, "dkd": [1, 0], "dist": [1, 2]}
"""Of the terms in the first step, where they are not all 1; that of `dkd` grows from 0."""

OPTIONS = {
    "distilbert": [{"temperature": 2, "t_squared": True}, {}, {}],
    "pkd": [{"temperature": 10, "t_squared": True}, {}, {}],
    "tinybert": [{}, {}, {"temperature": 1}],
    "minilmv2": [{"heads": 48}] * 3,
    "textbrewer_t6": [{"temperature": 8, "t_squared": False}] + [{}] * 8,
    "textbrewer_t3": [{"temperature": 8, "t_squared": False}] + [{}] * 5,
    "textbrewer_t4tiny": [{"temperature": 8, "t_squared": False}] + [{}] * 6,
    "dkd": [{}, {"alpha": 1, "beta": 8, "temperature": 4, "t_squared": True}],
    "dist": [{}, {"beta": 1, "gamma": 1, "temperature": 4, "t_squared": True}],
}
"""Of the tables in their order, as published; heads are those that every model of 768 and 384 features has."""


@pytest.mark.parametrize("name", NAMES)
def test_check_finds_the_terms_of_the_paper(recipe, name):
    lines = [line.strip() for line in command("check", recipe(name)).splitlines()]
    assert [line for line in lines if ": student " in line] == TERMS[name]


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_by_the_weights_of_the_paper(recipe, project, name):
    stages = [f"stages[{number}].train.steps=2" for number in range(2) if name == "tinybert"]
    command("run", recipe(name), *(word for text in stages for word in ("-s", text)))
    rows = []
    for file in sorted((project / "runs" / name).rglob("metrics.jsonl")):
        here = [row for row in map(json.loads, file.read_text().splitlines()) if "loss" in row]
        assert [row["step"] for row in here] == [1, 2], file
        rows.append(here)
    terms = [line.partition(":")[0] for line in TERMS[name]]
    found = {key.removeprefix("weight/"): row[0][key] for row in rows for key in row[0] if key.startswith("weight/")}
    assert sorted(found) == sorted(terms)
    assert [found[term] for term in terms] == pytest.approx(WEIGHTS.get(name, [1] * len(terms)), rel=1e-6)
    for row in (row for here in rows for row in here):
        sides = [row[f"weight/{term}"] * row[f"loss/{term}"] for term in terms if f"loss/{term}" in row]
        assert row["loss"] == pytest.approx(sum(sides), rel=1e-5)


def experiments(name, pack):
    """The recipe itself, by stage; nothing of it is changed, and no model is built."""
    return {stage: structure(part, pack) for stage, part in staged(read(RECIPES / f"{name}.toml")).items()}


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_options_are_those_of_the_paper(pack, name):
    losses = [loss for experiment in experiments(name, pack).values() for loss in experiment.losses]
    for loss, options in zip(losses, OPTIONS[name], strict=True):
        assert {key: getattr(loss.options, key) for key in options} == options


def test_the_student_of_patient_kd_starts_as_the_first_layers(recipe, project, pack):
    from transformers import AutoModelForSequenceClassification

    from hookbrew import factory

    made = experiments("pkd", pack)[""].student
    assert made.factory == "transformers:AutoModelForSequenceClassification.from_pretrained"
    arguments = made.arguments | {"pretrained_model_name_or_path": str(project / "bert")}
    student = factory.called(made.factory, arguments)
    whole = AutoModelForSequenceClassification.from_pretrained(project / "bert")
    layers, first = student.bert.encoder.layer, whole.bert.encoder.layer[:6]
    assert len(layers) == 6
    for ours, theirs in zip(layers, first, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_the_weight_of_patient_kd_is_the_500_of_its_code(pack):
    """intersun/PKD-for-BERT-Model-Compression, patience_loss: a mean over samples, layers and 768 features."""
    student, teacher = torch.randn(2, 3, 5, 768)
    loss = experiments("pkd", pack)[""].losses[2]
    function = loss.options.build()
    ours = sum(
        function(student=s[:, None], teacher=t[:, None], mask=None)
        for s, t in zip(student.unbind(1), teacher.unbind(1), strict=True)
    )
    theirs = 500 * F.mse_loss(F.normalize(student, dim=2), F.normalize(teacher, dim=2))
    assert float(loss.weight.base * ours) == pytest.approx(float(theirs), rel=1e-6)


def test_schedules_are_those_of_the_authors(pack):
    decoupled = experiments("dkd", pack)[""]
    weight, rate = (part.options.build() for part in (decoupled.losses[1].weight.schedule, decoupled.lr_schedule))
    assert decoupled.train.epochs == 240
    for epoch in range(20):  # theirs is epoch / 20 in epoch 1, 2, ... 20, which here is reached at its end
        assert weight((epoch + 1) / 240) == pytest.approx((epoch + 1) / 20, rel=1e-5)
    assert weight(21 / 240) == 1
    rates = [rate(epoch / 240) for epoch in (0, 149.9, 150, 179.9, 180, 209.9, 210, 239.9)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    slanted = experiments("textbrewer_t4tiny", pack)[""].lr_schedule.options.build()
    for progress in (0, 0.05, 0.1, 0.3, 0.999):
        height = progress / 0.1 if progress < 0.1 else 1 - (progress - 0.1) / 0.9
        assert slanted(progress) == pytest.approx((1 + height * 29) / 30, abs=1e-6)


def test_stages_of_tinybert(pack):
    first, second = experiments("tinybert", pack).values()
    assert (first.train.epochs, first.optimizer.lr, first.lr_schedule) == (10, 5e-5, None)
    assert (second.train.epochs, second.optimizer.lr, second.lr_schedule.options.warmup) == (3, 3e-5, 0.1)
    assert first.optimizer.arguments == second.optimizer.arguments == {"weight_decay": 0.01}


def test_every_recipe_is_tested_and_has_its_row():
    assert NAMES == sorted(TERMS) == sorted(NARROW)
    page = (RECIPES / "README.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| [")]
    assert sorted(rows) == [f"[{name}.toml]({name}.toml)" for name in NAMES]
    assert all((RECIPES / target).exists() for target in re.findall(r"\]\(([^)]+)\)", page))
