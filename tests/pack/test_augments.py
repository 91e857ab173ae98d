"""Masking: which tokens are replaced, how often, and by which random numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbrew.errors import DataError
from hookbrew_plugins.augments import Masking

CLS, SEP, MASK = 101, 102, 103


def text(batch=8, length=20):
    """Padded ids: CLS, words, SEP, then zeros."""
    lengths = torch.arange(batch) % (length - 3) + 4
    position = torch.arange(length)
    mask = (position < lengths.unsqueeze(1)).long()
    ids = torch.randint(1000, 2000, (batch, length), generator=torch.Generator().manual_seed(0)) * mask
    ids[:, 0] = CLS
    ids[torch.arange(batch), lengths - 1] = SEP
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(batch)}


def run(options, batch, seed=0):
    """One call with a new generator."""
    return options.build()(batch, torch.Generator().manual_seed(seed))


@given(p=st.floats(0, 1), seed=st.integers(0, 2**32))
@settings(deadline=None)
def test_only_plain_words_are_replaced_and_only_by_the_mask_token(p, seed):
    batch = text()
    ids = run(Masking(mask_token=MASK, p=p, keep=(CLS, SEP)), batch, seed)["input_ids"]
    before = batch["input_ids"]
    changed = ids != before
    assert bool((ids[changed] == MASK).all())
    assert bool((before[changed] >= 1000).all())


def test_probability_one_replaces_every_word():
    batch = text()
    ids = run(Masking(mask_token=MASK, p=1.0, keep=(CLS, SEP)), batch)["input_ids"]
    expected = torch.where(batch["input_ids"] >= 1000, MASK, batch["input_ids"])
    assert torch.equal(ids, expected)


def test_without_keep_special_tokens_are_words_but_padding_is_not():
    batch = text()
    ids = run(Masking(mask_token=MASK, p=1.0), batch)["input_ids"]
    assert torch.equal(ids, torch.where(batch["attention_mask"] == 1, MASK, 0))


def test_probability_zero_changes_nothing():
    batch = text()
    assert torch.equal(run(Masking(mask_token=MASK, p=0.0), batch)["input_ids"], batch["input_ids"])


def test_how_often():
    batch = {"input_ids": torch.ones(200, 500, dtype=torch.long)}
    ids = run(Masking(mask_token=MASK, p=0.3, mask=""), batch)["input_ids"]
    assert (ids == MASK).double().mean().item() == pytest.approx(0.3, abs=0.01)


def test_positions_are_drawn_one_by_one():
    batch = {"input_ids": torch.ones(50, 50, dtype=torch.long)}
    ids = run(Masking(mask_token=MASK, p=0.5, mask=""), batch)["input_ids"]
    assert len(ids.unique(dim=0)) == 50
    assert len(ids.unique(dim=1).T) == 50


def test_each_call_draws_anew_from_the_generator_and_a_seed_repeats_it():
    augment, batch, generator = Masking(mask_token=MASK, p=0.5).build(), text(), torch.Generator().manual_seed(3)
    first, second = (augment(batch, generator)["input_ids"] for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first, augment(batch, torch.Generator().manual_seed(3))["input_ids"])


def test_other_keys_are_passed_on_and_the_batch_is_a_new_one():
    batch = text()
    result = run(Masking(mask_token=MASK, p=1.0), batch)
    assert result is not batch
    assert list(result) == list(batch)
    assert result["labels"] is batch["labels"]
    assert torch.equal(batch["input_ids"], text()["input_ids"])


def test_keys_can_be_named():
    batch = {"tokens": torch.ones(1, 3, dtype=torch.int32), "valid": torch.tensor([[True, False, True]])}
    result = run(Masking(mask_token=9, p=1.0, ids="tokens", mask="valid"), batch)
    assert result["tokens"].tolist() == [[9, 1, 9]]
    assert result["tokens"].dtype == torch.int32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            Masking(mask_token=9, ids="input_id"),
            "masking: the batch has no key 'input_id' (option 'ids'); did you mean 'input_ids'?",
        ),
        (
            Masking(mask_token=9, mask="labels"),
            "masking: the mask 'labels' is (8,), and the ids are (8, 20)",
        ),
        (
            Masking(mask_token=9, mask="zzz"),
            "masking: the batch has no key 'zzz' (option 'mask'); one of: attention_mask, input_ids, labels",
        ),
    ],
)
def test_batches_that_do_not_fit(options, message):
    with pytest.raises(DataError) as caught:
        run(options, text())
    assert str(caught.value) == message


@pytest.mark.parametrize(("key", "value"), [("p", 1.5), ("p", -0.1), ("mask_token", -1)])
def test_options_out_of_bounds(key, value):
    with pytest.raises(ValueError, match=key):
        Masking(**{"mask_token": 9, key: value})
