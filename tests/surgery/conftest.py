"""What is changed: a plain network with aliases and ties, and tiny models of transformers."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import nn

SIZES = {"vocab_size": 32, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}


class Net(nn.Module):
    """Layers, one of them under one more name, one used twice, and a head tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
        self.body[3] = self.body[1]
        self.first = self.body[0]
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids):
        hidden = self.first(self.body(self.embed(input_ids)))
        return self.head(self.norm(hidden.flatten(0, 1)))


class Around(nn.Module):
    """A wrapper with a weight of its own."""

    def __init__(self, old):
        super().__init__()
        self.base = old
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, *args, **kwargs):
        return self.base(*args, **kwargs) * self.scale


def bert(t):
    config = t.BertConfig(**SIZES, max_position_embeddings=16, num_labels=3)
    return t.BertForSequenceClassification(config)


def gpt2(t):
    return t.GPT2LMHeadModel(
        t.GPT2Config(vocab_size=32, n_positions=16, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )


def t5(t):
    config = t.T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2)
    return t.T5ForConditionalGeneration(config)


MODELS = {"net": None, "bert": bert, "gpt2": gpt2, "t5": t5}


@cache
def built(name):
    """One model of each kind, in eval mode; nobody changes it."""
    torch.manual_seed(0)
    make = MODELS[name]
    return (Net() if make is None else make(pytest.importorskip("transformers"))).eval()


def model(name):
    """A model of one's own."""
    return copy.deepcopy(built(name))


def outputs(name, model):
    """What the model says of a few tokens."""
    ids = torch.arange(6)[None] + 1
    with torch.no_grad():
        if name == "net":
            return model(ids)
        extra = {"decoder_input_ids": ids} if name == "t5" else {}
        return model(input_ids=ids, **extra).logits


def facts(model, optimizer=None):
    """What is the same, to the object, of a model that is the same."""
    found = [
        [(path, id(module), module.training) for path, module in model.named_modules(remove_duplicate=False)],
        [[*map(id, (module, module._modules)), *module._modules] for module in model.modules()],
        [(name, id(p), p.requires_grad, p.dtype) for name, p in model.named_parameters(remove_duplicate=False)],
        [(name, id(b)) for name, b in model.named_buffers(remove_duplicate=False)],
        [*model.state_dict()],
    ]
    if optimizer is not None:
        found += [
            [(id(group), id(group["params"]), [*map(id, group["params"])]) for group in optimizer.param_groups],
            [(id(key), id(value)) for key, value in optimizer.state.items()],
        ]
    return found


@pytest.fixture
def net():
    return model("net").train()
