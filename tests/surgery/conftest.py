"""Tiny transformers of the families that students are made of, and how a model is run and loaded again."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

FAMILIES = importlib.util.spec_from_file_location("families", Path(__file__).parents[1] / "taps" / "conftest.py")
families = importlib.util.module_from_spec(FAMILIES)
FAMILIES.loader.exec_module(families)

LISTS = {
    "bert": {"bert.encoder.layer": 4},
    "distilbert": {"distilbert.transformer.layer": 4},
    "roberta": {"roberta.encoder.layer": 4},
    "deberta": {"deberta.encoder.layer": 4},
    "gpt2": {"transformer.h": 4},
    "llama": {"model.layers": 4},
    "qwen3": {"model.layers": 4},
    "mixtral": {"model.layers": 4},
    "gemma2": {"model.layers": 4},
    "modernbert": {"model.layers": 4},
    "vit": {"vit.layers": 4},
    "t5": {"encoder.block": 3, "decoder.block": 3},
    "bart": {"model.encoder.layers": 2, "model.decoder.layers": 3},
}
"""The lists of layers of each family, with their lengths."""
CASES = [(name, path, count) for name, paths in LISTS.items() for path, count in paths.items()]


def gemma2(t):
    sizes = {"num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32, "sliding_window": 4}
    return t.Gemma2ForCausalLM(t.Gemma2Config(**families.SIZES, **sizes))


@pytest.fixture(scope="session")
def transformer():
    """transformer(name): a fresh model in eval mode and its inputs, the same each time; all its tensors are random."""
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()

    def build(name):
        torch.manual_seed(0)
        model = (families.BUILDERS | {"gemma2": gemma2})[name](transformers).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # biases of 0 and norms of 1 would hide that one was lost
                parameter += 0.1 * torch.randn_like(parameter)
        ids = torch.randint(1, 64, (2, 7))
        if name == "vit":
            return model, {"pixel_values": torch.randn(2, 3, 8, 8)}
        if name in ("t5", "bart"):
            return model, {"input_ids": ids, "decoder_input_ids": ids[:, :5]}
        return model, {"input_ids": ids}

    return build


@pytest.fixture
def logits():
    """logits(model, inputs): what the model says in eval mode."""

    def run(model, inputs):
        assert not model.training
        with torch.no_grad():
            return model(**inputs).logits

    return run


@pytest.fixture
def loaded(tmp_path):
    """loaded(model): the same after it was saved, by its own class; nothing missing, nothing left over."""

    def again(model):
        model.save_pretrained(tmp_path / "saved")
        made, told = type(model).from_pretrained(tmp_path / "saved", output_loading_info=True)
        assert not any(told.values()), told
        return made.eval()

    return again


class Layer(nn.Module):
    """A layer that knows its own number, as those with caches do."""

    def __init__(self, width, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        return x + self.linear(x).tanh()


class Vit(nn.Module):
    """A vision transformer with the names of timm, which counts its blocks."""

    def __init__(self, depth=4, width=8):
        super().__init__()
        self.depth = depth
        self.patch_embed = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.Sequential(*(Layer(width, i) for i in range(depth)))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).mT
        for i in range(self.depth):
            x = self.blocks[i](x)
        return self.head(x.mean(1))


@pytest.fixture
def vit():
    """A model like those of timm in eval mode, and images (B, 3, 8, 8)."""
    return Vit().eval(), torch.randn(2, 3, 8, 8)
