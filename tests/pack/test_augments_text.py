"""Augmentations that move or drop the tokens of padded batches: against the lists of their words, row by row."""

from __future__ import annotations

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hookbrew as hb
from hookbrew.errors import DataError
from hookbrew_plugins import augments
from hookbrew_plugins.augments import Deleting, LongDisorder, NGramSampling, ShortDisorder

CLS, SEP, PAD = 1, 2, 0
ROWS = [[1, 11, 12, 13, 14, 2, 15, 16, 17, 2], [1, 21, 22, 23, 2], [1, 31, 2], [1, 2], [], [41, 42]]
"""Texts, pairs of texts, one without a word, nothing but padding, and one without special tokens."""

TOLD = {"keep": (CLS, SEP), "follow": {"labels": -100}}
MADE = [
    (Deleting(pad=PAD, p=0.5, **TOLD), "deleting", {"p": 0.5}),
    (NGramSampling(pad=PAD, **TOLD), "n_gram_sampling", {}),
    (ShortDisorder(p=(0.2, 0.2, 0.2, 0.2, 0.2), **TOLD), "short_disorder", {"p": [0.2] * 5}),
    (LongDisorder(p=0.5, length=4, **TOLD), "long_disorder", {"p": 0.5, "length": 4}),
]
SILENT = [attrs.evolve(made, follow={}) for made, _, _ in MADE]
"""The same where nobody says what labels are of."""


def padded(rows=ROWS, length=12, *, left=False):
    """A batch with labels and types for each token, and more that is not of tokens."""
    ids = torch.full((len(rows), length), PAD)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(rows):
        where = slice(length - len(text), length) if left else slice(len(text))
        ids[row, where], mask[row, where] = torch.tensor(text, dtype=torch.long), 1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.where(mask == 1, ids * 10, -100),
        "token_type_ids": (ids % 2) * mask,
        "position_ids": torch.arange(length).expand(len(rows), length),
        "index": torch.arange(len(rows)),
    }


def expected(row, name, options, generator):
    """The list version on the words; each special token stands between the same words, if they are still there."""
    words = [place for place, token in enumerate(row) if token not in (CLS, SEP)]
    order = getattr(augments, name)(words, **options, generator=generator)
    following = iter(order)
    return [
        row[place] if place not in words else row[next(following)]
        for place in range(len(row))
        if place not in words or place in order
    ]


@pytest.mark.parametrize(("made", "name", "options"), MADE)
@pytest.mark.parametrize("left", [False, True])
@settings(deadline=None)
@given(seed=st.integers(0, 2**32))
def test_each_row_is_what_the_list_version_makes_of_its_words(made, name, options, left, seed):
    batch, whole = padded(left=left), padded(left=left)
    result = made.build()(batch, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    wanted = padded([expected(row, name, options, generator) for row in ROWS], left=left)
    assert list(result) == list(batch)
    for key in wanted:
        assert torch.equal(result[key], wanted[key]), key
        assert torch.equal(batch[key], whole[key]), key
        assert result[key].dtype == whole[key].dtype


@pytest.mark.parametrize("made", SILENT)
def test_what_is_not_of_tokens_is_passed_on(made):
    batch = padded() | {"texts": ["a"] * len(ROWS), "labels": torch.arange(len(ROWS))}
    result = made.build()(batch, torch.Generator())
    assert all(result[key] is batch[key] for key in ("texts", "labels", "position_ids", "index"))


def test_a_text_is_never_dropped_whole_and_special_tokens_never():
    made = Deleting(pad=PAD, p=1.0, **TOLD).build()
    found = made(padded(), torch.Generator())["attention_mask"].sum(dim=1)
    assert found.tolist() == [4, 3, 3, 2, 0, 1]
    bare = Deleting(pad=PAD, p=1.0, stay=("labels",)).build()
    assert bare(padded(), torch.Generator())["attention_mask"].sum(dim=1).tolist() == [1, 1, 1, 1, 0, 1]


def test_a_full_batch_gets_padding_at_the_right_unless_told():
    batch = padded([[11, 12, 13]], 3) | {"labels": torch.zeros(1)}
    assert Deleting(pad=9, p=1.0).build()(batch, torch.Generator())["input_ids"][0, 1:].tolist() == [9, 9]
    assert Deleting(pad=9, p=1.0, side="left").build()(batch, torch.Generator())["input_ids"][0, :2].tolist() == [9, 9]
    mixed = padded([[11, 12, 13], [14, 15]], 3, left=True) | {"labels": torch.zeros(2)}
    assert Deleting(pad=9, p=1.0).build()(mixed, torch.Generator())["attention_mask"].tolist() == [[0, 0, 1]] * 2


def test_padding_keeps_the_ids_it_had():
    batch = {"input_ids": torch.tensor([[5, 6, 77, 88]]), "attention_mask": torch.tensor([[True, True, False, False]])}
    result = Deleting(pad=9, p=1.0).build()(batch, torch.Generator())
    assert result["input_ids"][0, 1:].tolist() == [9, 77, 88]
    assert result["attention_mask"].tolist() == [[True, False, False, False]]


def test_a_hole_in_the_mask_stays_where_it_is():
    batch = {"input_ids": torch.tensor([[5, 99, 6, 7]]), "attention_mask": torch.tensor([[1, 0, 1, 1]])}
    result = ShortDisorder(p=(0.0, 0.0, 1.0, 0.0, 0.0)).build()(batch, torch.Generator())
    assert result["input_ids"].tolist() == [[7, 99, 6, 5]]


def test_without_a_mask_padding_is_known_by_its_id_or_not_at_all():
    batch = {"input_ids": torch.tensor([[5, 6, 7, 0]])}
    assert Deleting(pad=0, p=1.0, mask="").build()(batch, torch.Generator())["input_ids"].count_nonzero() == 1
    swap = ShortDisorder(p=(0.0, 1.0, 0.0, 0.0, 0.0), mask="").build()
    assert swap(batch, torch.Generator())["input_ids"].tolist() == [[6, 5, 0, 7]]


def test_more_keys_can_follow_of_any_type_and_width():
    batch = padded(ROWS[:1]) | {"tags": padded(ROWS[:1])["input_ids"].int(), "valid": torch.ones(1, 12).bool()}
    batch["soft"] = batch["input_ids"].unsqueeze(-1) * torch.tensor([1.0, -1.0])
    made = Deleting(pad=PAD, p=0.5, follow={"labels": -100, "tags": -7, "soft": 0, "valid": 0})
    result = made.build()(batch, torch.Generator().manual_seed(1))
    there = result["attention_mask"].bool()
    assert 0 < there.sum() < 10
    assert torch.equal(result["tags"][there], result["input_ids"][there].int())
    assert torch.equal(result["soft"][there][:, 0], result["input_ids"][there].float())
    gone = batch["attention_mask"].bool() & ~there
    assert set(result["tags"][gone].tolist()) == {-7}
    assert result["soft"][gone].count_nonzero() == 0
    assert not result["valid"][gone].any()


@pytest.mark.parametrize(("dtype", "empty"), [(torch.float32, 0), (torch.long, -100)])
def test_labels_of_several_classes_follow_their_tokens(dtype, empty):
    batch = padded() | {"labels": (padded()["input_ids"].unsqueeze(-1) * torch.tensor([1, 2])).to(dtype)}
    result = Deleting(pad=PAD, p=0.5, follow={"labels": empty}).build()(batch, torch.Generator().manual_seed(1))
    there = result["attention_mask"].bool()
    gone = batch["attention_mask"].bool() & ~there
    assert gone.any()
    assert torch.equal(result["labels"][there][:, 0], result["input_ids"][there].to(dtype))
    assert (result["labels"][gone] == empty).all()
    stays = Deleting(pad=PAD, p=0.5, stay=("labels",)).build()
    assert stays(batch, torch.Generator())["labels"] is batch["labels"]


def test_labels_of_another_text_stay_when_told_and_soft_ones_of_samples_always():
    batch = padded()
    assert (
        LongDisorder(p=1.0, length=4, stay=("labels",)).build()(batch, torch.Generator())["labels"] is batch["labels"]
    )
    batch["labels"] = torch.rand(len(ROWS), 12)
    assert LongDisorder(p=1.0, length=4).build()(batch, torch.Generator())["labels"] is batch["labels"]


@pytest.mark.parametrize("made", SILENT)
@pytest.mark.parametrize(
    ("labels", "none"),
    [
        (torch.randint(0, 2, (6, 12)), -100),
        (torch.randint(0, 2, (6, 12)).bool(), -100),
        (torch.randint(0, 2, (6, 12, 3)), -100),
        (torch.rand(6, 12, 3), 0),
    ],
)
def test_labels_of_a_text_may_have_as_many_classes_as_it_has_tokens(made, labels, none):
    """Classes that do not exclude each other: nothing about their shape says that they are not of tokens."""
    batch = padded() | {"labels": labels}
    with pytest.raises(DataError) as caught:
        made.build()(batch, torch.Generator())
    assert str(caught.value).partition(": ")[2] == (
        f"'labels' is {tuple(labels.shape)}, and the ids are (6, 12); write follow = {{ labels = {none} }} if each is "
        'of its token, or stay = ["labels"] if they are of the text'
    )
    assert attrs.evolve(made, stay=("labels",)).build()(batch, torch.Generator())["labels"] is labels
    shorter = padded() | {"labels": labels[:, 1:]}
    assert made.build()(shorter, torch.Generator())["labels"] is shorter["labels"]


def test_no_rows_and_no_tokens():
    for shape in ((0, 4), (3, 0)):
        batch = {"input_ids": torch.zeros(shape, dtype=torch.long), "attention_mask": torch.zeros(shape)}
        for made in SILENT:
            assert made.build()(batch, torch.Generator())["input_ids"].shape == shape


@pytest.mark.parametrize(
    ("made", "more", "message"),
    [
        (
            Deleting(pad=0, ids="input_id"),
            {},
            "deleting: the batch has no key 'input_id' (option 'ids'); did you mean 'input_ids'?",
        ),
        (
            LongDisorder(mask="index"),
            {},
            "long_disorder: the mask 'index' is (6,), and the ids are (6, 12)",
        ),
        (
            ShortDisorder(follow={"tag": 0}),
            {"tags": torch.zeros(6, 12)},
            "short_disorder: the batch has no key 'tag' (option 'follow'); did you mean 'tags'?",
        ),
        (
            NGramSampling(pad=0, follow={"index": 0}),
            {},
            "n_gram_sampling: 'index' (option 'follow') is (6,); expected to begin with the shape of the ids, (6, 12)",
        ),
        (
            ShortDisorder(),
            {"tags": torch.zeros(6, 12, dtype=torch.long), "labels": torch.zeros(6)},
            "short_disorder: 'tags' is (6, 12) as the ids are; name it in the option 'follow', with what fills places "
            "without a token, if it goes with its tokens, or in 'stay'",
        ),
    ],
)
def test_batches_that_do_not_fit(made, more, message):
    with pytest.raises(DataError) as caught:
        made.build()(padded() | more, torch.Generator())
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (NGramSampling, {"pad": 0, "l_ng": (1, 2)}, "'p_ng' must be 2 probabilities"),
        (NGramSampling, {"pad": 0, "l_ng": (0,), "p_ng": (1.0,)}, "'l_ng' must be lengths of 1 or more"),
        (ShortDisorder, {"p": (1.0,)}, "'p' must be 5 probabilities that sum to 1"),
        (LongDisorder, {"length": 0.0}, "length"),
        (Deleting, {"pad": -1}, "pad"),
        (Deleting, {"pad": 0, "p": 1.5}, "'p' must be"),
        (Deleting, {"pad": 0, "side": "up"}, "side"),
    ],
)
def test_options_out_of_bounds(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_a_run_of_all_of_them_on_token_labels(tagger, batches, pack):
    """As they are written in a configuration: lists, a table, a whole number for a length."""
    made = [
        hb.augment("deleting", pad=0, p=0.2, follow={"tags": -100}),
        hb.augment("short_disorder", p=[0.5, 0.1, 0.1, 0.1, 0.2], follow={"tags": -100}),
        hb.augment("long_disorder", length=4, p=0.5, stay=["tags"]),
        hb.augment("n_gram_sampling", pad=0, l_ng=[3, 4], p_ng=[0.5, 0.5], follow={"tags": -100}, side="right"),
        hb.augment("masking", mask_token=19, keep=[3]),
    ]
    losses = [hb.loss("ce", labels="tags"), hb.loss("kd_ce")]
    student = tagger(8, pooled=False)
    run = hb.Distillation(tagger(12, pooled=False), student, losses, augments=made, catalogue=pack)
    assert run.fit(batches([9, 5, 3], [7, 8, 1]), epochs=2).step == 4
