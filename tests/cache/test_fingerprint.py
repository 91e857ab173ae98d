"""A cache of another teacher is refused, and says what differs."""

import copy
import re

import pytest
import torch
from torch import nn

from hookbrew.cache import fingerprint
from hookbrew.cache.fingerprint import vocabulary
from hookbrew.errors import CacheError

STORED = {"kind": "full", "dtype": "float32"}


def looked(model, **named):
    return fingerprint(model, **{"stored": STORED, "taps": ["head"], **named})


def refused(before, now):
    with pytest.raises(CacheError) as caught:
        now.require(before.facts(), "runs/cache")
    start, end = "the cache runs/cache is of something else: ", "; name another folder, or remove this one"
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith(end)
    return str(caught.value)[len(start) : -len(end)]


@pytest.fixture
def teacher(tagger):
    return tagger()


def test_the_same_teacher_is_taken(teacher):
    looked(copy.deepcopy(teacher)).require(looked(teacher).facts(), "runs/cache")


class Wrapped(nn.Module):
    """As torch.compile wraps a model."""

    def __init__(self, model):
        super().__init__()
        self._orig_mod = model


def test_a_compiled_teacher_is_the_same(teacher):
    assert looked(Wrapped(teacher)) == looked(teacher)


def test_modes_and_how_weights_lie_in_memory_do_not_count(teacher):
    before = looked(teacher)
    teacher.eval().requires_grad_(False)
    with torch.no_grad():
        teacher.head.weight.data = teacher.head.weight.t().contiguous().t()
    assert looked(teacher) == before


def moved(model):
    with torch.no_grad():
        model.head.bias[0] = torch.nextafter(model.head.bias[0], torch.tensor(torch.inf))


def buffered(model):
    model.register_buffer("scale", torch.ones(1), persistent=False)


def swapped(model):
    """The last token's row and the one before: the sum of all bytes is the same."""
    model.embed.weight.data = model.embed.weight.data.flip(0)


@pytest.mark.parametrize("change", [moved, buffered, swapped])
def test_other_weights_are_refused(teacher, change):
    before = looked(teacher)
    change(teacher)
    now = looked(teacher)
    assert refused(before, now) == f"weights {before.weights} before, {now.weights} now"


def test_another_structure_of_the_same_weights(teacher):
    before = looked(teacher)
    teacher.blocks[1][1] = nn.ReLU()
    now = looked(teacher)
    assert refused(before, now) == f"structure {before.structure} before, {now.structure} now"


def test_taps_kind_precision_and_format(teacher):
    before = looked(teacher)
    assert refused(before, looked(teacher, taps=["blocks.1"])) == 'taps ["head"] before, ["blocks.1"] now'
    other = looked(teacher, stored={"kind": "full", "dtype": "float16"})
    assert refused(before, other) == "stored.dtype float32 before, float16 now"
    assert refused(before, looked(teacher, precision="bf16")) == "precision fp32 before, bf16 now"
    with pytest.raises(CacheError, match="format 0 before, 1 now"):
        before.require(before.facts() | {"format": 0}, "runs/cache")
    with pytest.raises(CacheError, match=r"config none before, {} now, "):
        before.require({}, "runs/cache")


def test_a_model_of_transformers_says_which_setting_differs():
    transformers = pytest.importorskip("transformers")

    def made(**settings):
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, **settings
        )
        return looked(transformers.BertModel(config))

    assert made(name_or_path="there") == made(name_or_path="here")
    assert "config.layer_norm_eps 1e-12 before, 0.1 now" in refused(made(), made(layer_norm_eps=0.1))


class Tokenizer:
    def __init__(self, *words):
        self.words, self.special_tokens_map = words, {"pad_token": words[0]}

    def get_vocab(self):
        return {word: number for number, word in enumerate(self.words)}


def test_tokenizers(teacher, tmp_path):
    before = looked(teacher, tokenizer=Tokenizer("a", "b"))
    looked(teacher, tokenizer=Tokenizer("a", "b")).require(before.facts(), "")
    now = looked(teacher, tokenizer=Tokenizer("b", "a"))
    assert refused(before, now) == f"tokenizer {before.tokenizer} before, {now.tokenizer} now"
    assert refused(before, looked(teacher)) == f"tokenizer {before.tokenizer} before, none now"
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    (tmp_path / "model.safetensors").touch()
    found = vocabulary(tmp_path)
    (tmp_path / "model.safetensors").write_text("more")
    assert vocabulary(str(tmp_path)) == found
    (tmp_path / "vocab.txt").write_text("a\nc\n")
    assert vocabulary(tmp_path) != found


def test_what_is_no_tokenizer(tmp_path):
    with pytest.raises(CacheError, match=f"^{re.escape(str(tmp_path))} has no tokenizer: there is no tok"):
        vocabulary(tmp_path)
    with pytest.raises(CacheError, match=r"^a int is no tokenizer: it has no get_vocab\(\)$"):
        vocabulary(3)
