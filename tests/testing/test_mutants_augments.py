"""Bugs of augmentations: check_augment catches each, and passes what has none."""

from __future__ import annotations

import attrs
import pytest
import torch

from hookbrew.errors import DataError
from hookbrew.plugin import options
from hookbrew.testing import check_augment
from hookbrew_plugins.augments import Deleting, Masking, Mixup


@options
class Mutant:
    """An augmentation of texts or a bug of it."""

    function: object = attrs.field()
    keep: tuple[int, ...] = ()

    def build(self):
        return lambda batch, generator: self.function(batch, generator, self.keep)


@options
class Pictured:
    """An augmentation of images or a bug of it."""

    function: object = attrs.field()

    def build(self):
        return self.function


def hit(batch, generator, share=0.3):
    """Where a draw is below the share."""
    return torch.rand(batch["input_ids"].shape, generator=generator) < share


def words(batch, keep):
    """Where there is a token, and it is not kept."""
    kept = torch.isin(batch["input_ids"], torch.tensor(keep, dtype=torch.long))
    return batch["attention_mask"].bool() & ~kept


def reference(batch, generator, keep):
    """Some words become 29."""
    return {**batch, "input_ids": batch["input_ids"].masked_fill(words(batch, keep) & hit(batch, generator), 29)}


def padding_replaced(batch, generator, keep):
    free = words(batch, keep) | ~batch["attention_mask"].bool()
    return {**batch, "input_ids": batch["input_ids"].masked_fill(free & hit(batch, generator), 29)}


def padding_attended(batch, generator, keep):
    return {**reference(batch, generator, keep), "attention_mask": torch.ones_like(batch["attention_mask"])}


def padding_shuffled(batch, generator, keep):
    order = torch.randperm(16, generator=generator)
    return {**batch, "input_ids": batch["input_ids"][:, order], "attention_mask": batch["attention_mask"][:, order]}


def keep_forgotten(batch, generator, keep):
    return reference(batch, generator, ())


def keep_made(batch, generator, keep):
    ids = batch["input_ids"].masked_fill(words(batch, keep) & hit(batch, generator), keep[0] if keep else 29)
    return {**batch, "input_ids": ids}


def keep_reversed(batch, generator, keep):
    """Rows without padding are turned round."""
    full = batch["attention_mask"].all(dim=1, keepdim=True)
    return {**batch, "input_ids": torch.where(full, batch["input_ids"].flip(1), batch["input_ids"])}


def emptied(batch, generator, keep):
    gone = words(batch, keep) & hit(batch, generator, 0.7)
    return {**batch, "attention_mask": batch["attention_mask"].masked_fill(gone, 0)}


SEEDED = [
    (padding_replaced, "padding_stays"),
    (padding_attended, "padding_stays"),
    (padding_shuffled, "padding_stays", "keep_is_kept"),
    (keep_forgotten, "keep_is_kept"),
    (keep_made, "keep_is_kept"),
    (keep_reversed, "keep_is_kept"),
    (emptied, "never_empty"),
]


def test_the_plain_augmentations_pass_every_property():
    checks = [check.name for check in check_augment.checks(Mutant(function=reference))]
    assert checks[-4:] == ["label_mass", "padding_stays", "never_empty", "keep_is_kept"]
    check_augment(Mutant(function=reference))
    assert [check.name for check in check_augment.checks(Pictured(function=mixed))] == checks[:-3]
    check_augment(Pictured(function=mixed))


@pytest.mark.parametrize(("function", "caught_by"), [(function, by) for function, *by in SEEDED])
def test_each_bug_on_texts_is_caught(function, caught_by):
    assert list(check_augment.failures(Mutant(function=function))) == caught_by


def mixed(batch, generator, *, forgotten=0.0, columns=5):
    """Half of the next image and of its label."""
    if "pixel_values" not in batch:
        raise DataError("no images")
    labels = batch["labels"]
    if not labels.is_floating_point():
        labels = torch.nn.functional.one_hot(labels, 5).float()
    halves = {key: (tensor + tensor.roll(1, 0)) / 2 for key, tensor in {**batch, "labels": labels}.items()}
    return {**halves, "labels": (halves["labels"] * (1 - forgotten))[:, :columns]}


@pytest.mark.parametrize(
    ("bug", "caught_by"),
    [
        (lambda batch, generator: mixed(batch, generator, forgotten=0.1), ["label_mass"]),
        (lambda batch, generator: mixed(batch, generator, columns=3), ["shapes_and_dtypes", "label_mass"]),
        (
            lambda batch, generator: {**mixed(batch, generator), "labels": batch["labels"].float().mean(dim=0)},
            ["shapes_and_dtypes", "label_mass"],
        ),
    ],
)
def test_each_bug_on_images_is_caught(bug, caught_by):
    assert list(check_augment.failures(Pictured(function=bug))) == caught_by


def test_what_an_augmentation_is_asked_on():
    keys = {type(made): {*found.batch} for made in (Masking(mask_token=3), Mixup()) for found in subjects(made)}
    assert keys == {
        Masking: {"input_ids", "attention_mask", "labels"},
        Mixup: {"pixel_values", "labels"},
    }
    assert [subject.batch["labels"].is_floating_point() for subject in subjects(Mixup())] == [True]
    assert [subject.batch["labels"].is_floating_point() for subject in subjects(Mixup(classes=5))] == [True, False]
    ends = [subject.batch["attention_mask"][-1, [0, -1]].tolist() for subject in subjects(Deleting(pad=0))]
    assert ends == [[1, 0], [0, 1]]


def subjects(made):
    return [*check_augment.subjects(made)]


def test_an_augmentation_that_takes_nothing():
    with pytest.raises(AssertionError) as caught:
        check_augment(Masking(mask_token=3, ids="tokens"))
    text = "input_ids, attention_mask, labels: masking: the batch has no key 'tokens' (option 'ids'); one of: "
    picture = (
        "pixel_values, labels: masking: the batch has no key 'tokens' (option 'ids'); one of: labels, pixel_values"
    )
    text += "attention_mask, input_ids, labels"
    assert (
        str(caught.value) == f"Masking is no augment: it refuses every batch; {'; '.join([text] * 2 + [picture] * 2)}"
    )
