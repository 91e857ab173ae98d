"""What every augmentation does. `check_augment(Masking(mask_token=103))` checks it all.

It is asked on a padded batch of token ids; `check_augment(options, batch={...})` gives another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch
from torch import Generator, Tensor

from hookbrew.testing.kit import Kit, law, require

Batch = dict[str, Tensor]


@attrs.frozen(eq=False)
class Change:
    """An augmentation and a batch to change."""

    options: Any
    augment: Callable[[Batch, Generator], Batch]
    batch: Batch

    @property
    def offers(self) -> frozenset[str]:
        """`labels` if the batch has them."""
        return frozenset({"labels"} & self.batch.keys())

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
    """Every key is there, with its shape, dtype and device."""
    result = change.changed()
    require(result.keys() == change.batch.keys(), f"keys {', '.join(change.batch)} become {', '.join(result)}")
    for key, tensor in change.batch.items():
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
    """Class numbers stay; soft labels keep the sum of each row."""
    before, after = change.batch["labels"], change.changed()["labels"]
    if before.is_floating_point():
        before, after = before.sum(dim=-1), after.sum(dim=-1)
        require(torch.allclose(before, after), "the sums of the soft labels change")
    else:
        require(torch.equal(before, after), "the labels change")


def padded_text() -> Batch:
    """Four samples of up to 16 ids, padded with 0."""
    generator = Generator().manual_seed(0)
    mask = (torch.arange(16) < torch.tensor([16, 9, 5, 1]).unsqueeze(1)).long()
    return {
        "input_ids": torch.randint(1, 30, (4, 16), generator=generator) * mask,
        "attention_mask": mask,
        "labels": torch.tensor([0, 1, 1, 0]),
    }


def changes(options: Any, *, batch: Batch | None = None) -> Iterator[Change]:
    """The one subject."""
    yield Change(options, options.build(), padded_text() if batch is None else batch)


PROPERTIES = (input_untouched, shapes_and_dtypes, seeded, global_random_untouched, label_mass)

check_augment = Kit("augment", changes, PROPERTIES)
"""check_augment(options, exempt=None, batch=None): AssertionError unless the augmentation has all of PROPERTIES."""
