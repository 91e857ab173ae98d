"""Runs of a second, of students of several kinds, in one folder with the module that makes them."""

import sys

import pytest
import tomli_w

import hookbrew_plugins
from hookbrew.plugin import catalogue
from hookbrew.run import run

MODULE = '''
import dataclasses

import torch
from torch import nn


class Net(nn.Module):
    """Embeds tokens, (B, L), and scores 3 classes."""

    def __init__(self, width=8):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, width), nn.Linear(width, 3)

    def forward(self, input_ids, attention_mask=None):
        mask = attention_mask[..., None]
        return self.head((self.embed(input_ids) * mask).sum(1) / mask.sum(1).clamp(min=1))


@dataclasses.dataclass
class Both:
    logits: torch.Tensor
    hidden: tuple
    cache: object = None


class Several(Net):
    """Gives a dataclass of several outputs."""

    def forward(self, input_ids, attention_mask=None):
        hidden = self.embed(input_ids)
        return Both(super().forward(input_ids, attention_mask), (hidden, hidden.tanh()), cache=object())


class Sized(nn.Module):
    """Takes 5 tokens, and no other number."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 2), nn.Linear(10, 3)

    def forward(self, input_ids):
        return self.head(self.embed(input_ids).reshape(-1, 10))


class Choosy(Net):
    """Does what the values say, which no graph can."""

    def forward(self, input_ids, attention_mask=None):
        return super().forward(input_ids, attention_mask) * (2 if input_ids.sum() > 40 else 1)


def halved(dtype="bfloat16"):
    return Net().to(getattr(torch, dtype))


def factorised():
    """A BERT of which one layer is two of low rank, as no configuration says."""
    import transformers

    size = {"vocab_size": 20, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 3}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(num_hidden_layers=1, **size))
    inner = model.bert.encoder.layer[0].intermediate
    inner.dense = nn.Sequential(nn.Linear(16, 4, bias=False), nn.Linear(4, 32))
    return model


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )


def texts(number=12, length=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(number):
        size = length or int(torch.randint(2, 7, (), generator=generator))
        ids = torch.randint(1, 20, (size,), generator=generator)
        made.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": int(ids[0]) % 3})
    return made


def tagged():
    made = texts()
    return [{**{k: v for k, v in text.items() if k != "labels"}, "tags": text["input_ids"]} for text in made]


def images(number=12):
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(1, 8, 9, generator=generator), i % 3) for i in range(number)]
'''
GUARDED = """
from hookbrew.taps import unwrap
from exportland import Net


def guarded():
    return unwrap(Net())
"""
BERT = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BERT |= {"factory": "transformers:BertConfig", "max_position_embeddings": 24, "num_labels": 3, "initializer_range": 0.2}
GPT2 = {"factory": "transformers:GPT2Config", "vocab_size": 20, "n_embd": 16, "n_layer": 2, "n_head": 2}
GPT2 |= {"n_positions": 24, "bos_token_id": 1, "eos_token_id": 1}
TOKENS = {"train": {"factory": "exportland:texts"}, "evaluate": {"factory": "exportland:texts", "seed": 1}}
TOKENS |= {"batch_size": 4, "pad": {"input_ids": 0, "attention_mask": 0}}
IMAGES = {"train": {"factory": "exportland:images"}, "fields": ["input", "labels"], "batch_size": 4}
FIXED = {**TOKENS, "train": {"factory": "exportland:texts", "length": 5}}
FIXED["evaluate"] = FIXED["train"]
TAGGED = {**TOKENS, "train": {"factory": "exportland:tagged"}, "evaluate": {"factory": "exportland:tagged"}}
TAGGED |= {"labels": "tags", "causal": True, "pad": {"input_ids": 0, "attention_mask": 0, "tags": -100}}
STUDENTS = {
    "net": ({"factory": "exportland:Net"}, TOKENS),
    "several": ({"factory": "exportland:Several"}, {**TOKENS, "logits": ":out.logits"}),
    "sized": ({"factory": "exportland:Sized"}, FIXED),
    "choosy": ({"factory": "exportland:Choosy"}, TOKENS),
    "half": ({"factory": "exportland:halved"}, TOKENS),
    "cnn": ({"factory": "exportland:convolutional"}, IMAGES),
    "guarded": ({"factory": "exportguarded:guarded"}, TOKENS),
    "factorised": ({"factory": "exportland:factorised"}, TOKENS),
    "bert": ({"factory": "transformers:BertForSequenceClassification", "config": BERT}, TOKENS),
    "gpt2": ({"factory": "transformers:GPT2LMHeadModel", "config": GPT2}, TAGGED),
}


@pytest.fixture(scope="session")
def known():
    """The standard pack and nothing that happens to be installed."""
    return catalogue(discover=False, plugins=[hookbrew_plugins])


@pytest.fixture(scope="session")
def land(tmp_path_factory):
    """The folder of the modules."""
    folder = tmp_path_factory.mktemp("exportland")
    (folder / "exportland.py").write_text(MODULE)
    (folder / "exportguarded.py").write_text(GUARDED)
    yield folder
    for name in ("exportland", "exportguarded"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def configured(land):
    """configured("net", **tables): a file whose run makes that student."""

    def write(name, output=None, **more):
        student, data = STUDENTS[name]
        tree = {
            "output": f"runs/{output or name}",
            "pythonpath": ["."],
            "student": student,
            **({} if "tasks" in more else {"data": data, "losses": [{"type": "ce"}]}),
            "train": {"steps": 3, "device": "cpu"},
            "callbacks": [{"type": "checkpoint", "every": 1, "keep_last": 2}],
        }
        if "evaluate" in data and "tasks" not in more:
            tree["callbacks"].append({"type": "best"})
        file = land / f"{output or name}.toml"
        file.write_text(tomli_w.dumps(tree | more))
        return file

    return write


@pytest.fixture(scope="session")
def trained(configured, known):
    """trained("net"): the folder of a run that is done, the same for all tests."""
    done = {}

    def train(name, output=None, **more):
        key = output or name
        if key not in done:
            file = configured(name, output, **more)
            run(file, catalogue=known, quiet=True)
            done[key] = file.parent / f"runs/{key}"
        return done[key]

    return train
