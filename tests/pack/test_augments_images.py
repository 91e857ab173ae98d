"""mixup and cutmix: which image is mixed with which, by how much, and that labels tell the same story."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hookbrew as hb
from hookbrew.errors import DataError
from hookbrew_plugins.augments import CutMix, Mixup
from hookbrew_plugins.augments.images import beta

SEEDS = st.integers(0, 2**32)
BOTH = [Mixup, CutMix]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count=6, height=9, width=5, classes=4):
    """Image i is i everywhere, so that what is mixed in can be told from any pixel."""
    images = torch.arange(count, dtype=torch.float64).view(-1, 1, 1, 1).expand(count, 3, height, width)
    return {"pixel_values": images.clone(), "labels": torch.arange(count) % classes, "index": torch.arange(count)}


def one_hot(labels, classes=4):
    """Rows of the unit matrix; zeros for -100."""
    return torch.tensor([[float(label == c) for c in range(classes)] for label in labels.tolist()])


def partners(images, result, share):
    """Which image was mixed into each, if the first has this share of every pixel or of the area."""
    means = result.mean(dim=(1, 2, 3)) - share * images[:, 0, 0, 0]
    return (means / (1 - share)).round().long()


@settings(deadline=None)
@given(seed=SEEDS, alpha=st.floats(0.1, 5), count=st.integers(2, 7))
def test_mixup_is_one_share_and_one_permutation(seed, alpha, count):
    batch = pictures(count)
    result = Mixup(alpha=alpha, classes=4).build()(batch, generator(seed))
    share = beta(alpha, generator(seed))
    images = result["pixel_values"]
    if 0.001 < share < 0.999:
        others = partners(batch["pixel_values"], images, share)
        assert sorted(others.tolist()) == [*range(count)]
        expected = share * batch["pixel_values"] + (1 - share) * batch["pixel_values"][others]
        assert torch.allclose(images, expected)
        labels = share * one_hot(batch["labels"]) + (1 - share) * one_hot(batch["labels"][others])
        assert torch.allclose(result["labels"], labels, atol=1e-6)
    assert result["index"] is batch["index"]


@settings(deadline=None)
@given(seed=SEEDS, alpha=st.floats(0.1, 5), height=st.integers(1, 12), width=st.integers(1, 12))
def test_cutmix_pastes_one_box_and_labels_say_how_large_it_really_is(seed, alpha, height, width):
    batch = pictures(5, height, width)
    result = CutMix(alpha=alpha, classes=4).build()(batch, generator(seed))
    changed = (result["pixel_values"] != batch["pixel_values"]).any(dim=(0, 1))
    rows, columns = changed.any(dim=1), changed.any(dim=0)
    assert torch.equal(changed, rows.unsqueeze(1) & columns)
    for side in (rows.tolist(), columns.tolist()):
        assert "01" not in "".join(str(int(x)) for x in side).strip("0")[1:]
    inside = result["pixel_values"][:, 0][:, changed]
    if inside.numel():
        assert torch.equal(inside, inside[:, :1].expand_as(inside))
        others = inside[:, 0].long()
        assert sorted(others.tolist()) == [*range(5)]
        share = 1 - changed.double().mean().item()
        labels = share * one_hot(batch["labels"]) + (1 - share) * one_hot(batch["labels"][others])
        assert torch.allclose(result["labels"], labels, atol=1e-6)


def test_the_box_of_cutmix_is_as_large_as_asked_before_the_border_cuts_it():
    found = []
    for seed in range(400):
        result = CutMix(classes=4).build()(pictures(2, 40, 20), generator(seed))
        changed = (result["pixel_values"] != pictures(2, 40, 20)["pixel_values"]).any(dim=(0, 1))
        share = beta(1.0, generator(seed))
        tall, wide = int(changed.any(dim=1).sum()), int(changed.any(dim=0).sum())
        if changed.any():
            most = [2 * (int(size * (1 - share) ** 0.5) // 2) for size in (40, 20)]
            assert tall <= most[0]
            assert wide <= most[1]
            found.append([tall, wide] == most)
    assert 40 < sum(found) < len(found)


@pytest.mark.parametrize("alpha", [0.02, 0.2, 1.0, 4.0])
def test_shares_are_beta(alpha):
    """Its moments, E x^i (1 - x)^j = B(alpha + i, alpha + j) / B(alpha, alpha)."""
    drawn = generator()
    shares = np.array([beta(alpha, drawn) for _ in range(3000)])
    for i, j in [(1, 0), (2, 0), (3, 0), (1, 1), (2, 2)]:
        gammas = [alpha + i, alpha + j, 2 * alpha, alpha, alpha, 2 * alpha + i + j]
        signs = [1, 1, 1, -1, -1, -1]
        expected = math.exp(sum(sign * math.lgamma(x) for sign, x in zip(signs, gammas, strict=True)))
        values = shares**i * (1 - shares) ** j
        assert values.mean() == pytest.approx(expected, abs=4 * values.std() / 3000**0.5)


def test_a_tiny_alpha_takes_one_image_whole():
    drawn = generator()
    shares = {beta(1e-5, drawn) for _ in range(50)}
    assert min(shares) < 1e-300
    assert max(shares) == 1.0


@pytest.mark.parametrize("kind", BOTH)
@settings(deadline=None)
@given(seed=SEEDS)
def test_every_class_keeps_its_mass(kind, seed):
    batch = pictures()
    result = kind(classes=4).build()(batch, generator(seed))
    assert result["labels"].shape == (6, 4)
    assert torch.allclose(result["labels"].sum(dim=0), torch.tensor([2.0, 2.0, 1.0, 1.0]))
    assert torch.allclose(result["labels"].sum(dim=1), torch.ones(6))


@pytest.mark.parametrize("kind", BOTH)
def test_soft_labels_and_targets_are_mixed_as_they_are(kind):
    hard = kind(classes=4).build()(pictures(), generator(3))["labels"]
    soft = pictures() | {"labels": one_hot(pictures()["labels"]).double()}
    found = kind().build()(soft, generator(3))["labels"]
    assert found.dtype == torch.float64
    assert torch.allclose(found, hard.double())
    amounts = kind().build()(soft | {"labels": soft["labels"] @ torch.arange(4.0).double()}, generator(3))["labels"]
    assert torch.allclose(amounts, found @ torch.arange(4.0).double())


@pytest.mark.parametrize("kind", BOTH)
def test_a_sample_without_a_label_gives_its_share_to_nobody(kind):
    labels = torch.tensor([0, -100, 2, -100, 1, 3])
    found = kind(classes=4, alpha=3.0).build()(pictures() | {"labels": labels}, generator(1))["labels"]
    assert torch.allclose(found.sum(dim=0), torch.ones(4))
    bare = kind(classes=4).build()(pictures() | {"labels": torch.full((6,), -100)}, generator(1))["labels"]
    assert torch.equal(bare, torch.zeros(6, 4))


@pytest.mark.parametrize("kind", BOTH)
def test_batches_without_labels(kind):
    images = pictures()["pixel_values"]
    alone = kind().build()({"pixel_values": images}, generator(2))
    assert list(alone) == ["pixel_values"]
    assert not torch.equal(alone["pixel_values"], images)
    kept = kind(labels="").build()(pictures(), generator(2))
    assert torch.equal(kept["labels"], pictures()["labels"])
    assert torch.equal(kept["pixel_values"], alone["pixel_values"])


def test_cutmix_moves_pixels_of_any_type_and_mixup_adds_floats():
    whole = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 8, 8)
    found = CutMix(images="image").build()({"image": whole}, generator(1))["image"]
    assert found.dtype == torch.uint8
    short = Mixup(images="x").build()({"x": torch.randn(4, 2).bfloat16()}, generator(1))["x"]
    assert short.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("made", "changed", "message"),
    [
        (
            Mixup(images="pixels", classes=4),
            {},
            "mixup: the batch has no key 'pixels' (option 'images'); did you mean 'pixel_values'?",
        ),
        (
            CutMix(),
            {},
            "cutmix: the labels 'labels' are numbers of classes; say how many there are, with 'classes'",
        ),
        (Mixup(classes=3), {}, "mixup: a label is 3; expected 0 to 2, or -100 for none"),
        (
            Mixup(classes=3),
            {"labels": torch.zeros(6, 9, 5, dtype=torch.long)},
            "mixup: the labels 'labels' are torch.int64 (6, 9, 5); expected floats, or the number of the class of each "
            "sample, (6,)",
        ),
        (
            Mixup(labels="label"),
            {},
            "mixup: the batch has no key 'label' (option 'labels'); did you mean 'labels'?",
        ),
        (
            Mixup(classes=4),
            {"pixel_values": torch.zeros(6, 3, 4, 4, dtype=torch.uint8)},
            "mixup: the images are torch.uint8; expected floats, as a preprocessor gives",
        ),
        (
            CutMix(classes=4),
            {"pixel_values": torch.zeros(6, 3)},
            "cutmix: the images are (6, 3); expected (batch, ..., height, width)",
        ),
    ],
)
def test_batches_that_do_not_fit(made, changed, message):
    with pytest.raises(DataError) as caught:
        made.build()(pictures() | changed, generator())
    assert str(caught.value) == message


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_run_trains_on_mixed_labels_and_is_evaluated_on_numbers(kind, pack):
    """Labels are numbers when sizes are measured, and soft afterwards; samples without one do not count in `ce`."""

    class Net(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.body, self.head = torch.nn.Linear(3 * 8 * 8, width), torch.nn.Linear(width, 4)

        def forward(self, pixel_values):
            return self.head(self.body(pixel_values.flatten(1)).relu())

    colours = torch.randn(4, 3, 1, 1, generator=generator())
    labels = torch.arange(64) % 4
    images = colours[labels] + 0.3 * torch.randn(64, 3, 8, 8, generator=generator(1))
    told = labels.masked_fill(torch.arange(64) % 9 == 8, -100)
    data = [{"pixel_values": images[i : i + 16], "labels": told[i : i + 16]} for i in range(0, 64, 16)]
    soft = [{**batch, "labels": one_hot(batch["labels"])} for batch in data]
    made = hb.augment(kind, classes=4)
    student = Net(8)
    run = hb.Distillation(
        Net(16), student, [hb.loss("ce"), hb.loss("kd_ce", weight=0.1)], augments=[made], catalogue=pack
    )
    found = [
        run.fit(
            data,
            epochs=8,
            optimizer=torch.optim.AdamW(student.parameters(), 1e-2),
            evaluate=evaluate,
            callbacks=[hb.callback("evaluate")],
        )
        for evaluate in (data, soft)
    ]
    assert found[0].metrics["accuracy"] > 0.9
    assert found[1].metrics["accuracy"] > 0.9
