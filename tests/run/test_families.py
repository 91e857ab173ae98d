"""One configuration for models of different families: it differs in nothing but the model."""

import sys
import textwrap

import pytest

MODULE = """
import torch
import transformers as t

SIZES = {"vocab_size": 64, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}


def bert(layers):
    config = t.BertConfig(**SIZES, num_hidden_layers=layers, max_position_embeddings=32, num_labels=3)
    return t.BertForSequenceClassification(config)


def distilbert(layers):
    config = t.DistilBertConfig(vocab_size=64, dim=16, n_layers=layers, n_heads=2, hidden_dim=24, num_labels=3)
    return t.DistilBertForSequenceClassification(config)


def albert(layers):
    config = t.AlbertConfig(**SIZES, num_hidden_layers=layers, embedding_size=8, num_labels=3)
    return t.AlbertForSequenceClassification(config)


def gpt2(layers):
    config = t.GPT2Config(
        vocab_size=64, n_positions=32, n_embd=16, n_layer=layers, n_head=2, num_labels=3,
        pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )
    return t.GPT2ForSequenceClassification(config)


def llama(layers):
    more = {"num_key_value_heads": 1, "max_position_embeddings": 32, "num_labels": 3, "pad_token_id": 0}
    config = t.LlamaConfig(**SIZES, **more, num_hidden_layers=layers)
    return t.LlamaForSequenceClassification(config)


def samples():
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, 60, (n,), generator=generator) for n in (5, 7, 4, 6)]
    return [{"input_ids": i, "attention_mask": torch.ones_like(i), "labels": int(i[0]) % 3} for i in ids]
"""

CONFIG = """\
output = "runs/family"
pythonpath = ["."]
teacher = { factory = "families:FAMILY", layers = 4 }
student = { factory = "families:FAMILY", layers = 2 }
train = { steps = 1, device = "cpu" }

[data]
train = { factory = "families:samples" }
batch_size = 4
pad = { input_ids = 0, attention_mask = 0 }

[[losses]]
type = "hidden_mse"
student = "hidden[1:]"
teacher = "hidden[1,3]"
"""

BLOCKS = {
    "bert": "bert.encoder.layer.{}",
    "distilbert": "distilbert.transformer.layer.{}",
    "albert": "albert.encoder.albert_layer_groups.0#{}",
    "gpt2": "transformer.h.{}",
    "llama": "model.layers.{}",
}


@pytest.mark.parametrize("family", BLOCKS)
def test_aliases_in_a_configuration(tmp_path, monkeypatch, hookbrew, family):
    pytest.importorskip("transformers")
    (tmp_path / "families.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "distill.toml").write_text(CONFIG.replace("FAMILY", family))
    monkeypatch.chdir(tmp_path)
    done = hookbrew("check", "distill.toml")
    sys.modules.pop("families", None)
    assert done.exit_code == 0, done.output
    lines = [line.strip() for line in done.stdout.splitlines()]
    block = BLOCKS[family]
    assert f"hidden_mse/0: student {block.format(0)} ~ teacher {block.format(0)}, a mean over positions" in lines
    assert f"hidden_mse/1: student {block.format(1)} ~ teacher {block.format(2)}, a mean over positions" in lines
    path = block.format(2).partition("#")[0]
    assert f"teacher stops after {path if family == 'albert' else f'layer 3 of 4 ({path})'}" in lines
