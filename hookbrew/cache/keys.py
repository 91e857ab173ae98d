"""The key of an example: a hash of what the teacher gets of it, wherever in the data it stands.

B batch, L tokens. Caches that go by position give the rows of another sample once the data is shuffled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Self

import attrs
import numpy as np
import torch
from torch import Tensor

from hookbrew import words
from hookbrew.errors import CacheError

SIZE = 16
"""Bytes of a key: of 2^40 examples, two have the same one with a probability of 2^-49."""
DECODER = "decoder_"
"""What inputs of a decoder begin with, beside those of its encoder: two texts, each with a mask of its own."""
PLAIN = (str, bytes, int, float, bool, type(None))
"""Inputs that are no tensors and have a content nonetheless."""


@attrs.frozen
class Examples:
    """A batch as the cache sees it."""

    keys: tuple[bytes, ...]
    """One an example."""
    spans: tuple[tuple[int, int], ...]
    """Where each example's tokens begin and end; (0, 0) where nothing says it."""
    length: int
    """L, padding and all; 0 where no mask says what that is."""


def examples(
    inputs: Mapping[str, Any], mask: str = "attention_mask", *, tokens: Collection[str] | None = None
) -> Examples:
    """The keys of a batch, by all that the teacher gets: names, dtypes, shapes without padding, and bytes.

    Padding is what the mask, (B, L) of integers or bools, has 0 for after an example's last token; without such a
    mask among the inputs, all is content. What stands before the first token is left out as well, but counts by its
    length: it moves the positions of those after it. tokens: the inputs (B, L, ...) that are padded so; if not
    given, those of integers or bools that have the mask's shape, and are of the decoder if it is of the decoder.

    Raises CacheError for an input that has not one row an example, or whose content cannot be told.
    """
    for name, value in inputs.items():
        if not isinstance(value, (Tensor, *PLAIN)):
            kind = type(value).__name__
            raise CacheError(f"input {name!r} is a {kind}, whose content makes no key; expected a tensor or a number")
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor) and value.dim()}
    size = counted(tensors)
    padding = tensors.get(mask)
    spans, padded = [(0, 0)] * size, frozenset[str]()
    if padding is not None and padding.dim() == 2 and len(padding) == size and whole(padding):
        padded = frozenset(along(tensors, mask) if tokens is None else required(tokens, tensors, padding))
        spans = spanned(padding)
    shared = b"".join(described(name, value) for name, value in sorted(inputs.items()) if name not in tensors)
    columns = [Column.of(name, value, cut=name in padded) for name, value in sorted(tensors.items())]
    keys = tuple(key(columns, row, span if padded else (0, 0), shared) for row, span in enumerate(spans))
    return Examples(keys, tuple(spans), padding.shape[1] if padded and padding is not None else 0)


@attrs.frozen
class Column:
    """One input of a batch, as bytes: a batch is hashed before each step that reads the cache."""

    label: str
    """Its name and dtype."""
    shape: tuple[int, ...]
    """Of one example."""
    rows: memoryview
    """The bytes of all examples, one after the other; of one example if all share it."""
    size: int
    """Bytes of one example."""
    step: int
    """From one example to the next; 0 where all share one."""
    cut: bool
    """Whether the first dimension of `shape` goes along the tokens."""
    _labels: dict[int, bytes] = attrs.field(factory=dict, init=False)
    """By the number of tokens, what is said of a row before its bytes."""

    @classmethod
    def of(cls, name: str, tensor: Tensor, *, cut: bool) -> Self:
        """A tensor of one row an example."""
        rows, size = content(tensor.detach().cpu()), tensor.nbytes // max(len(tensor), 1)
        step = size if len(tensor) > 1 else 0
        return cls(f"{name!r} {tensor.dtype}", tuple(tensor.shape[1:]), memoryview(rows), size, step, cut)

    def add(self, found: Any, row: int, span: tuple[int, int]) -> None:
        """Hash a row, between the first token and the last if it is padded."""
        start, count = row * self.step, -1
        stop = start + self.size
        if self.cut:
            unit, count = self.size // max(self.shape[0], 1), span[1] - span[0]
            start, stop = start + span[0] * unit, start + span[1] * unit
        found.update(self._labels.get(count) or self._labelled(count))
        found.update(self.rows[start:stop])

    def _labelled(self, count: int) -> bytes:
        """Name, dtype and shape of a row; count: its tokens, -1 where nothing is cut off."""
        shape = self.shape if count < 0 else (count, *self.shape[1:])
        label = self._labels[count] = f"{self.label} {shape};".encode()
        return label


def counted(tensors: Mapping[str, Tensor]) -> int:
    """B; a tensor of one row is the same for all examples. Raises CacheError for one that fits no other."""
    sizes = {name: len(value) for name, value in tensors.items() if len(value) != 1}
    if not tensors:
        raise CacheError("the teacher gets no tensor with examples in it")
    if len(set(sizes.values())) > 1:
        told = words.several(f"{name} {size}" for name, size in sizes.items())
        raise CacheError(f"inputs of the teacher differ in their number of rows ({told}); expected one an example")
    return next(iter(sizes.values()), 1)


def whole(mask: Tensor) -> bool:
    """Whether a mask says by 0 what padding is; one of floats may be added to scores, and says it by -inf."""
    return not mask.is_floating_point() and not mask.is_complex()


def along(tensors: Mapping[str, Tensor], mask: str) -> list[str]:
    """The inputs that are padded as the mask is, as far as that can be seen: by shape, and by whose text it is."""
    shape, decoded = tensors[mask].shape[1:], mask.startswith(DECODER)
    return [
        name
        for name, value in tensors.items()
        if whole(value) and value.shape[1:] == shape and name.startswith(DECODER) == decoded
    ]


def required(tokens: Collection[str], tensors: Mapping[str, Tensor], mask: Tensor) -> list[str]:
    """The inputs that are said to be padded, and the mask; CacheError for one that does not fit it."""
    for name in tokens:
        if name not in tensors:
            raise CacheError(f"there is no input {name!r} that could be padded; {words.hint(name, tensors)}")
        if tensors[name].dim() < 2 or tensors[name].shape[1] != mask.shape[1]:
            shapes = f"{tuple(tensors[name].shape)}, the mask {tuple(mask.shape)}"
            raise CacheError(f"input {name!r} is not padded as the mask is: it has shape {shapes}")
    return [*tokens, *(name for name, value in tensors.items() if value is mask)]


def spanned(mask: Tensor) -> list[tuple[int, int]]:
    """Where the tokens of each row begin and end; all of it where the mask leaves nothing."""
    valid = mask.detach().cpu().numpy() != 0
    length = valid.shape[1]
    if not length:
        return [(0, 0)] * len(valid)
    starts, stops = valid.argmax(1), length - np.flip(valid, 1).argmax(1)
    return [(int(a), int(b)) if some else (0, length) for a, b, some in zip(starts, stops, valid.any(1), strict=True)]


def key(columns: Iterable[Column], row: int, span: tuple[int, int], shared: bytes) -> bytes:
    """The key of one row; what is hashed is self-delimiting, so that no two contents give one text."""
    found = hashlib.blake2b(shared, digest_size=SIZE, person=b"hookbrew")
    found.update(b"%d;" % span[0])
    for column in columns:
        column.add(found, row, span)
    return found.digest()


def described(name: str, value: Any) -> bytes:
    """An input that has no rows, as text."""
    told = f"{value.dtype} {value.item()!r}" if isinstance(value, Tensor) else f"{type(value).__name__} {value!r}"
    return f"{name!r} {told};".encode()


def content(tensor: Tensor) -> Any:
    """The bytes of a tensor on the CPU, of any dtype; not copied if it is contiguous."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy()
