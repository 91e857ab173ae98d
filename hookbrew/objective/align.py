"""Logits, masks and labels, brought to the shape in which a loss compares them.

B batch, L tokens, D features, C classes, H heads, S keys. A mask is (B, L), 1 where a position counts.
Unless its class says what it counts, a loss on a tensor that begins with (B, L) and has a feature dimension, or
that comes from an attention, counts positions; on any other it counts samples, (B,).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor

from hookbrew import words
from hookbrew.errors import DataError, ObjectiveError
from hookbrew.objective.attended import places
from hookbrew.objective.glance import glance
from hookbrew.objective.inputs import Names, parted
from hookbrew.objective.source import Counts, Source

IGNORED = -100
"""The label that marks a position or a sample without one, as everywhere in torch."""
ENCODER = "attention_mask"
"""The mask of the tokens that an encoder sees, where there is a decoder too."""
STUDENT = ("student",)
"""The student's side of a batch."""


class Scope(NamedTuple):
    """What a term counts, settled on the first batch: which mask it obeys, and whether labels mark positions."""

    counts: Counts
    """Positions, (B, L); pairs of positions of one sample, (B, L, L); or samples, (B,)."""
    mask: str | None = None
    """The key of the mask that it obeys; None where every position counts."""
    sides: tuple[tuple[str, ...], ...] = ()
    """Whose masks those are, as `parted` names them: the student's, and a teacher's where it has one of its own."""
    marked: bool = False
    """Whether there is one label for each position or sample, so that -100, or a soft label of zeros, takes it out."""
    labels: str | None = None
    """The key of its labels."""
    shifted: bool = False
    """Whether logits at a position are of the token after it: they are compared with its label, under its mask."""


def mask_key(source: Source, names: Names) -> str | None:
    """The key of the mask that a loss uses, or None if it was told to use none."""
    wanted = source.table.mask
    if wanted is False:
        return None
    return names.mask if wanted is True else wanted


def scope_of(source: Source, pair: int | None, tensor: Tensor, batch: Mapping[str, Any], names: Names) -> Scope:
    """What a loss counts in this tensor of the student, and which mask and labels say what of it is there.

    Raises ObjectiveError when a mask is there that does not fit, or that the loss does not take: padding
    would count as real input. Raises DataError when labels are needed and missing.
    """
    there = places(source.takes, tensor.shape)
    key = labels_key(source, pair, names) if "labels" in source.roles else None
    labels = None if key is None else labels_of(source, key, parted(batch, "student"))
    marked = labels is not None and source.marks and marks(labels, there, soft=source.soft)
    shifted = source.takes == "logits" and bool(names.causal) and tensor.dim() == 3
    if labels is not None and source.takes == "logits":
        require_labels(labels, tensor, names, shifted=shifted, marked=marked)
    mask, sides = mask_key(source, names), masked(source, tensor, batch, names)
    inferred: Counts = "positions" if len(there) > 1 and (sides or marked) else "samples"
    return Scope(
        counts=source.counts or inferred,
        mask=mask if sides else None,
        sides=sides,
        marked=marked,
        labels=key,
        shifted=shifted,
    )


def masked(source: Source, tensor: Tensor, batch: Mapping[str, Any], names: Names) -> tuple[tuple[str, ...], ...]:
    """Whose masks the tensor obeys, (..., D) a mask (...), (B, H, L, S) or (B, H, L, D) of an attention one (B, L).

    The student's, and those that teachers have of their own, if they fit; none at all if there is none.
    """
    key, named = mask_key(source, names), isinstance(source.table.mask, str)
    found = {side: parted(batch, *side) for side in (STUDENT, *(("teacher", name) for name in source.teachers))}
    masks = {side: part[key] for side, part in found.items() if key in part}
    if named and not masks:
        raise ObjectiveError(f"mask: the batch has no key {key!r}; {words.hint(str(key), found[STUDENT])}")
    if key is None or not masks or (tensor.dim() < 3 and not named):
        return ()  # a mask of positions says nothing about a tensor that has none, like pooled logits
    own, there = masks.get(STUDENT), places(source.takes, tensor.shape)
    if own is not None and own.shape != there:
        raise ObjectiveError(
            f"the mask {key!r} is {tuple(own.shape)} and does not fit the student's {tuple(tensor.shape)}; name "
            'the right key with mask = "...", or write mask = false if every position counts'
        )
    if source.takes == "logits" and not named and key == ENCODER and "decoder_input_ids" in found[STUDENT]:
        raise ObjectiveError(  # of one length with the decoder's by chance
            f"the mask {key!r} is of the encoder's tokens, and logits are of decoder_input_ids; name the right key "
            'with mask = "...", or write mask = false if every position counts'
        )
    sides = tuple(s for s, mask in masks.items() if s == STUDENT or (mask is not own and mask.shape == there))
    if sides and "mask" not in source.roles:
        raise ObjectiveError(
            f"loss {source.table.type!r} takes no mask, and {key!r} marks padding in its tensors; give its "
            "function a parameter 'mask', or write mask = false if every position counts"
        )
    return sides


@attrs.frozen
class Valid:
    """What of a batch counts for a term."""

    labels: Tensor | None
    mask: Tensor | None
    """Bool, (B, L) or (B,); None where nothing is left out, as far as a glance tells."""
    shape: torch.Size | None
    """That of a mask that may leave something out; None without one."""

    def given(self, device: torch.device) -> Tensor | None:
        """The mask, also where it leaves nothing out."""
        if self.mask is None and self.shape is not None:
            return torch.ones(self.shape, dtype=torch.bool, device=device)
        return self.mask

    def part(self, samples: slice) -> Valid:
        """The same of some samples."""
        labels, mask = (None if one is None else one[samples] for one in (self.labels, self.mask))
        shape = None if self.shape is None else torch.Size((samples.stop - samples.start, *self.shape[1:]))
        return Valid(labels, mask, shape)

    def count(self, counts: Counts, samples: int) -> float | Tensor:
        """As `count`; a number where that is known without asking a device."""
        if self.mask is not None:
            return count(self.mask, counts, samples, self.mask.device)
        if self.shape is None:
            return float(samples)
        positions = self.shape[1:].numel()  # of (B,) 1; of tokens that are each shifted away none
        return float(self.shape[0] * {"positions": positions, "pairs": positions**2, "samples": positions > 0}[counts])


class Seen:
    """A batch as losses see it: what several need is made once. For one call only, as callbacks may change batches."""

    def __init__(self, batch: Mapping[str, Any]) -> None:
        self.batch, self._valid = batch, dict[Scope, Valid]()
        self.own: Mapping[str, Any] = parted(batch, "student")
        """The student's part."""

    def valid(self, source: Source, scope: Scope) -> Valid:
        """The mask and the labels for a loss, shifted as its logits.

        A label of -100 makes its position invalid; so does a mask of the teacher's own. Of shifted logits a position
        is valid if it and the token that it is of are. Raises DataError when the mask or the labels are missing.
        """
        found = self._valid.get(scope)
        if found is None:
            labels = None if scope.labels is None else labels_of(source, scope.labels, self.own)
            mask, shape = joint(source, scope, self.batch) if scope.sides else (None, None)
            if scope.shifted:
                mask = None if mask is None else mask[:, :-1] & mask[:, 1:]
                shape = None if shape is None else torch.Size((shape[0], shape[1] - 1))
                labels = None if labels is None else labels[:, 1:]
            if labels is not None and scope.marked:
                there = labelled(labels)
                mask = there if mask is None else mask if there is None else mask & there
                shape = labels.shape[:-1] if labels.is_floating_point() else labels.shape
            found = self._valid[scope] = Valid(labels, mask, shape)
        return found


def joint(source: Source, scope: Scope, batch: Mapping[str, Any]) -> tuple[Tensor | None, torch.Size | None]:
    """Where all the masks that a term obeys are 1, and their shape; None for one that leaves nothing out.

    Raises DataError for a mask that is missing, or of another shape than the first.
    """
    mask, shape = None, None
    for side in scope.sides:
        one = parted(batch, *side).get(str(scope.mask))
        if one is None:
            raise DataError(f"loss {source.name!r} obeys {scope.mask!r}, which the first batch had and this one lacks")
        if shape is not None and one.shape != shape:
            raise DataError(
                f"loss {source.name!r} obeys the masks {scope.mask!r} of the student and of its teachers, and in this "
                f"batch they are {tuple(shape)} and {tuple(one.shape)}"
            )
        shape = one.shape
        if (numbers := glance(one)) is None or 0 in numbers:
            mask = one.bool() if mask is None else mask & one.bool()
    return mask, shape


def require_labels(labels: Tensor, logits: Tensor, names: Names, *, shifted: bool, marked: bool) -> None:
    """Raise ObjectiveError for labels of samples where logits are of the next token, and for numbers past `classes`."""
    if shifted and labels.shape[:2] != logits.shape[:2]:
        raise ObjectiveError(
            f"labels are {tuple(labels.shape)} and logits {tuple(logits.shape)}; causal = true needs one for each token"
        )
    if names.classes is None or not marked or labels.is_floating_point() or not labels.numel():
        return
    largest, classes = int(labels.max()), logits.shape[-1] if names.classes == "tokens" else names.classes
    if largest >= classes:
        what = f"there are {classes} tokens" if names.classes == "tokens" else f"classes = {classes}"
        raise ObjectiveError(f"labels: there is a {largest}, and {what}; the first is 0, and -100 is none")


def marks(labels: Tensor, there: torch.Size, *, soft: bool) -> bool:
    """Whether labels say of each of these places whether it has one: integers, or (..., C) if the loss takes `soft`."""
    if labels.is_floating_point():
        return soft and labels.dim() > 1 and labels.shape[:-1] == there
    return labels.shape == there


def labelled(labels: Tensor) -> Tensor | None:
    """Where there is a label, bool: not -100; of soft ones (..., C), which an augmentation makes of integers, not 0.

    None where a glance tells that there is one everywhere.
    """
    if labels.is_floating_point():
        return (labels > 0).any(dim=-1)
    numbers = glance(labels)
    return None if numbers is not None and IGNORED not in numbers else labels != IGNORED


def logits_of(tensor: Tensor, names: Names, batch: Mapping[str, Any], *, shifted: bool) -> Tensor:
    """Logits without what is no class, (..., C), and without the last position of shifted ones.

    A class that is padding is cut off, or -inf where classes are tokens. Raises ObjectiveError when they do not fit.
    """
    if names.classes == "tokens":
        mask = batch.get(names.mask)
        if mask is None or mask.shape != tensor.shape:
            there = "no such key" if mask is None else f"it is {tuple(mask.shape)}"
            raise ObjectiveError(
                f'classes = "tokens" says that logits {tuple(tensor.shape)} are of tokens, (batch, tokens), of which '
                f"the mask {names.mask!r} says which are there; {there}"
            )
        tensor = tensor.masked_fill(~mask.bool(), -torch.inf)
    elif names.classes is not None:
        if tensor.shape[-1] < names.classes:
            raise ObjectiveError(f"classes = {names.classes}, and logits are {tuple(tensor.shape)}")
        tensor = tensor[..., : names.classes]
    return tensor[:, :-1] if shifted else tensor


def labels_key(source: Source, pair: int | None, names: Names) -> str:
    """The key of a term's labels; raises ObjectiveError when there are not as many keys as pairs of tensors."""
    keys = source.table.labels or names.labels
    if isinstance(keys, str):
        return keys
    if source.takes != "logits" and source.table.labels is None and len(keys) > 1:  # its pairs are layers, not heads
        raise ObjectiveError(
            f"labels: data.labels names {words.several(keys)}, one for each tensor of logits, and loss "
            f'{source.table.type!r} compares others; name one, as in labels = "{keys[0]}"'
        )
    if pair is None and len(keys) == 1:
        return keys[0]
    if pair is None or pair >= len(keys):
        many = "one tensor" if pair is None else f"at least {pair + 1} tensors"
        raise ObjectiveError(f"labels: {len(keys)} keys ({words.several(keys)}) for {many}; write one for each")
    return keys[pair]


def labels_of(source: Source, key: str, batch: Mapping[str, Any]) -> Tensor:
    """The labels for a loss; raises DataError when the batch has none under that key."""
    if key not in batch:
        raise DataError(
            f"loss {source.name!r} needs labels, and the batch has no key {key!r}; {words.hint(key, batch)}"
        )
    labels = batch[key]
    if not isinstance(labels, Tensor):
        raise DataError(
            f"loss {source.name!r} needs labels, and {key!r} is a {type(labels).__name__}; expected a tensor"
        )
    return labels


def count(mask: Tensor | None, counts: Counts, samples: int, device: torch.device) -> Tensor:
    """How many positions, pairs or samples are valid, a float scalar on `device`; no host sync.

    Without a mask it is the samples: each has as much of the rest as any other.
    A pair is two valid positions of one sample; a sample is valid with any position.
    """
    if mask is None:
        return torch.full((), float(samples), device=device)
    if counts == "positions" or mask.dim() == 1:
        return mask.sum(dtype=torch.float32)
    positions = mask.reshape(len(mask), -1).sum(dim=1)
    return (positions.square() if counts == "pairs" else positions > 0).sum(dtype=torch.float32)
