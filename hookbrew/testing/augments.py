"""What every augmentation does. `check_augment(Masking(mask_token=103))` checks it all.

It is asked on padded batches of token ids or, if it refuses them with DataError or KeyError, on batches of images;
`check_augment(options, batch={...})` gives another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch
from torch import Generator, Tensor

from hookbrew.errors import DataError
from hookbrew.testing.kit import Kit, law, require

Batch = dict[str, Tensor]
SEEDS = range(20)
"""Draws on which the properties of texts must hold: what goes wrong is seldom."""


@attrs.frozen(eq=False)
class Change:
    """An augmentation and a batch to change."""

    options: Any
    augment: Callable[[Batch, Generator], Batch]
    batch: Batch

    @property
    def offers(self) -> frozenset[str]:
        """`labels` and `text` if the batch has them, `keep` if that is an option too."""
        found = {"labels"} & self.batch.keys()
        if self.batch.keys() >= {"input_ids", "attention_mask"}:
            options = (
                {field.name for field in attrs.fields(type(self.options))} if attrs.has(type(self.options)) else set()
            )
            found |= {"text"} | ({"keep"} & options)
        return frozenset(found)

    def fresh(self) -> Batch:
        """A copy of the batch."""
        return {key: tensor.clone() for key, tensor in self.batch.items()}

    def changed(self, seed: int = 0) -> Batch:
        """The augmented batch, drawn with this seed."""
        return self.augment(self.fresh(), Generator().manual_seed(seed))


@law()
def input_untouched(change: Change) -> None:
    """The batch that is given is not changed, neither its keys nor its tensors; the result is a new one."""
    batch = change.fresh()
    result = change.augment(batch, Generator().manual_seed(0))
    require(result is not batch, "it returns the very batch it was given")
    require(batch.keys() == change.batch.keys(), f"it changes the keys of its input: {', '.join(batch)}")
    for key, tensor in change.batch.items():
        require(torch.equal(batch[key], tensor), f"it changes {key!r} of its input in place")


@law()
def shapes_and_dtypes(change: Change) -> None:
    """Every key is there, with its shape, dtype and device; but class numbers may become soft labels."""
    result = change.changed()
    require(result.keys() == change.batch.keys(), f"keys {', '.join(change.batch)} become {', '.join(result)}")
    for key, tensor in change.batch.items():
        if key == "labels" and softened(tensor, result[key]):
            continue
        before, after = ((tuple(x.shape), x.dtype, x.device) for x in (tensor, result[key]))
        require(before == after, f"{key!r} was {before} and is {after}")


@law()
def seeded(change: Change) -> None:
    """The same seed of the generator gives the same batch."""
    one, torch_state = change.changed(3), torch.get_rng_state()
    torch.manual_seed(1)
    other = change.changed(3)
    torch.set_rng_state(torch_state)
    for key in one:
        require(torch.equal(one[key], other[key]), f"the same seed gives another {key!r}")


@law()
def global_random_untouched(change: Change) -> None:
    """Random numbers come from the generator alone."""
    before = torch.get_rng_state()
    change.changed()
    require(torch.equal(before, torch.get_rng_state()), "it draws from torch's global generator")


@law("labels")
def label_mass(change: Change) -> None:
    """Class numbers stay, or become soft labels that sum to 1; soft labels keep the sum of each row."""
    before, after = change.batch["labels"], change.changed()["labels"]
    if softened(before, after):
        before = (before >= 0).to(after.dtype).unsqueeze(-1)
    if before.is_floating_point():
        before, after = before.sum(dim=-1), after.sum(dim=-1)
        require(torch.allclose(before, after), "the sums of the soft labels change")
    else:
        require(torch.equal(before, after), "the labels change")


@law("text")
def padding_stays(change: Change) -> None:
    """What is padding stays so, with its id: no token is put there."""
    hole = change.batch["attention_mask"] == 0
    for seed in SEEDS:
        result = change.changed(seed)
        require(bool((result["attention_mask"][hole] == 0).all()), "padding becomes a token in the mask")
        before, after = (batch["input_ids"][hole] for batch in (change.batch, result))
        require(torch.equal(before, after), "the ids of padding change")


@law("text")
def never_empty(change: Change) -> None:
    """A row that has tokens keeps one of them."""
    for seed in SEEDS:
        rows = [batch["attention_mask"].any(dim=1) for batch in (change.batch, change.changed(seed))]
        require(torch.equal(*rows), "a row has no token left")


@law("text", "keep")
def keep_is_kept(change: Change) -> None:
    """The tokens in the option `keep` are all there, each as often and in the same order."""
    ids, there = change.batch["input_ids"], change.batch["attention_mask"] != 0
    keep = tuple(
        sorted({int(row[mask][end]) for row, mask in zip(ids, there, strict=True) if mask.any() for end in (0, -1)})
    )
    kept = attrs.evolve(change, options=attrs.evolve(change.options, keep=keep))
    augment = kept.options.build()
    for seed in SEEDS:
        result = augment(change.fresh(), Generator().manual_seed(seed))
        require(specials(change.batch, keep) == specials(result, keep), "a token of 'keep' is lost, made or moved")


def specials(batch: Batch, keep: tuple[int, ...]) -> list[list[int]]:
    """The tokens of each row that are in `keep`."""
    rows = zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True)
    return [[token for token, there in zip(*row, strict=True) if there and token in keep] for row in rows]


def softened(before: Tensor, after: Tensor) -> bool:
    """Whether integers, (...), became floats, (..., C)."""
    return not before.is_floating_point() and after.is_floating_point() and after.shape[:-1] == before.shape


def padded_text() -> Iterator[Batch]:
    """Five samples of up to 16 ids, padded with 0 at the right, then at the left; they begin with 1 and end with 2."""
    generator = Generator().manual_seed(0)
    lengths = torch.tensor([16, 9, 5, 3, 2]).unsqueeze(1)
    mask = (torch.arange(16) < lengths).long()
    ids = torch.randint(3, 30, mask.shape, generator=generator)
    ids[:, 0] = 1
    ids = ids.scatter(1, lengths - 1, 2) * mask
    for turned in (False, True):
        places = (torch.arange(16) - (16 - lengths) * turned) % 16
        yield {
            "input_ids": ids.gather(1, places),
            "attention_mask": mask.gather(1, places),
            "labels": torch.tensor([0, 1, 1, 0, 1]),
        }


def pictures() -> Iterator[Batch]:
    """Four images of 3 colours with soft labels of 5 classes, then with the numbers of classes."""
    generator = Generator().manual_seed(0)
    images = torch.randn(4, 3, 8, 6, generator=generator)
    yield {"pixel_values": images, "labels": torch.rand(4, 5, generator=generator).softmax(dim=-1)}
    yield {"pixel_values": images, "labels": torch.tensor([0, 4, 2, 2])}


def changes(options: Any, *, batch: Batch | None = None) -> Iterator[Change]:
    """The augmentation on the batch that is given; or on texts if it accepts any, else on images.

    Raises AssertionError when it refuses all of them.
    """
    augment = options.build()
    if batch is not None:
        yield Change(options, augment, batch)
        return
    refused = []
    for group in (padded_text(), pictures()):
        accepted = 0
        for known in group:
            change = Change(options, augment, known)
            try:
                change.changed()
            except (DataError, KeyError) as error:
                refused.append(f"{', '.join(known)}: {error}")
                continue
            except Exception:  # a property will say so, by its name
                pass
            accepted += 1
            yield change
        if accepted:
            return
    raise AssertionError(f"it refuses every batch; {'; '.join(refused)}")


PROPERTIES = (
    input_untouched,
    shapes_and_dtypes,
    seeded,
    global_random_untouched,
    label_mass,
    padding_stays,
    never_empty,
    keep_is_kept,
)

check_augment = Kit("augment", changes, PROPERTIES)
"""check_augment(options, exempt=None, batch=None): AssertionError unless the augmentation has all of PROPERTIES."""
