"""The models of the jobs in work.py, with random weights and without dropout, so that all compute the same.

B batch, L tokens, D features, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def bert(width: int, layers: int) -> nn.Module:
    """A BERT of four heads without dropout, with random weights."""
    from transformers import BertConfig, BertForSequenceClassification

    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": 4}
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4}
    config = BertConfig(vocab_size=5000, intermediate_size=4 * width, **sizes, **none)
    return BertForSequenceClassification(config)


def gpt(width: int, layers: int) -> nn.Module:
    """A GPT-2 with a vocabulary of 50k."""
    from transformers import GPT2Config, GPT2LMHeadModel

    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False, "bos_token_id": 0}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=50_000, n_embd=width, n_layer=layers, n_head=4, eos_token_id=0, **none)
    )


def encoders() -> tuple[nn.Module, nn.Module]:
    """A student of 3 layers, 128 wide, and a teacher of 12, 256 wide."""
    torch.manual_seed(0)
    return bert(128, 3), bert(256, 12)


def decoders() -> tuple[nn.Module, nn.Module]:
    """A student of 2 layers, 128 wide, and a teacher of 4, 256 wide."""
    torch.manual_seed(0)
    return gpt(128, 2), gpt(256, 4)


class Stored(nn.Module):
    """Stands for a teacher whose logits lie in the batch: what somebody writes who has stored them."""

    def forward(self, stored: Tensor) -> Tensor:
        """What it is given, (B, C)."""
        return stored


def stored() -> tuple[nn.Module, nn.Module]:
    """The student of `encoders` and what stands for the teacher."""
    return encoders()[0], Stored()


def storing() -> nn.Module:
    """The teacher of `encoders`, whose logits were stored."""
    return encoders()[1].eval()


def perceptrons() -> tuple[nn.Module, nn.Module]:
    """Student and teacher of two layers, so small that a step is nearly all overhead."""
    torch.manual_seed(0)
    student, teacher = (nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, 4)) for width in (32, 64))
    return student, teacher
