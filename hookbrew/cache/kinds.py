"""What is kept of a teacher's outputs. B batch, L tokens, C classes, K of them that are kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor

from hookbrew import words
from hookbrew.errors import CacheError

FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DTYPES = {"int8": torch.int8, "int32": torch.int32, **FLOATS}


def numbered(axes: Iterable[int]) -> tuple[int, ...]:
    """Numbers of dimensions, in their order."""
    return tuple(axes)


@attrs.frozen
class Part:
    """One tensor of each example."""

    name: str
    dtype: str
    """A word of `DTYPES`."""
    tokens: bool
    """Whether its first dimension goes along the tokens."""
    axes: tuple[int, ...] = attrs.field(default=(), converter=numbered)
    """Where it is others that do, as of an attention, (H, L, S) or (H, L, D): which."""

    @property
    def torch(self) -> torch.dtype:
        """The dtype."""
        return DTYPES[self.dtype]


class Kind(Protocol):
    """A way to keep outputs."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The tensors of an example, in the order in which they lie on the disk."""

    def facts(self) -> dict[str, Any]:
        """What it is, for the fingerprint."""

    def encode(self, outputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The parts of a batch, each (B, ...); raises CacheError for outputs that it cannot keep."""

    def decode(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs, out of the parts of a batch by name; as far as they were kept."""


def dtyped(instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    """Raise CacheError for a dtype that outputs are not kept in."""
    if value not in FLOATS:
        raise CacheError(f"outputs are not kept in {value!r}; {words.hint(value, FLOATS)}")


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Names, in their order."""
    return tuple(names)


@attrs.frozen
class Full:
    """All logits: exact in fp32, else rounded."""

    dtype: str = attrs.field(default="fp32", validator=dtyped)
    tokens: bool = False
    """Whether they are (B, L, C), and not (B, C)."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The logits."""
        return (Part("logits", self.dtype, self.tokens),)

    def facts(self) -> dict[str, Any]:
        """Its name and parts."""
        return stored("full", self.parts)

    def encode(self, outputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The logits, in the dtype that they are kept in."""
        return [cast("logits", logits(outputs, tokens=self.tokens), self.dtype)]

    def decode(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The logits."""
        return dict(parts)


@attrs.frozen
class TopK:
    """The log-probabilities of the K likeliest classes, their ids, and the log of the mass that all others have.

    Without the tail the K would have to be normalised, which is biased. Of one temperature alone: the tail of
    another one cannot be had from it.
    """

    k: int = attrs.field(default=64, validator=attrs.validators.ge(1))
    dtype: str = attrs.field(default="fp16", validator=dtyped)
    temperature: float = attrs.field(default=1.0, validator=attrs.validators.gt(0))
    tokens: bool = False
    """Whether the logits are (B, L, C), and not (B, C)."""
    classes: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    """C, for `decode`."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """(K,), (K,) and () for each example or token."""
        names = {"values": self.dtype, "indices": "int32", "tail": self.dtype}
        return tuple(Part(name, dtype, self.tokens) for name, dtype in names.items())

    def facts(self) -> dict[str, Any]:
        """Its name, options and parts."""
        return stored("topk", self.parts, k=self.k, temperature=self.temperature)

    def encode(self, outputs: Mapping[str, Tensor]) -> list[Tensor]:
        """log p of the likeliest, falling, their ids, and log (1 - sum p), summed over the others in fp32."""
        log_p = (logits(outputs, tokens=self.tokens).float() / self.temperature).log_softmax(-1)
        values, indices = log_p.topk(min(self.k, log_p.shape[-1]), dim=-1)
        tail = log_p.scatter(-1, indices, -torch.inf).logsumexp(-1)  # not 1 - sum: that cancels where it is small
        return [cast("values", values, self.dtype), indices.int(), cast("tail", tail, self.dtype)]

    def decode(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits whose softmax at the temperature has the K as they were, and the tail in equal shares for all others.

        Whatever reads no more than the K, and the others as one, cannot tell them from the teacher's.
        """
        values, tail, indices = parts["values"].float(), parts["tail"].float(), parts["indices"].long()
        others = max(1, self.classes - values.shape[-1])
        log_p = (tail - math.log(others))[..., None].repeat(*[1] * tail.dim(), self.classes)
        return {"logits": log_p.scatter_(-1, indices, values) * self.temperature}


@attrs.frozen
class Hidden:
    """Tensors that were tapped, by name."""

    names: tuple[str, ...] = attrs.field(converter=ordered)
    tokens: tuple[str, ...] = attrs.field(default=(), converter=ordered)
    """Those of them that are (B, L, ...)."""
    dtype: str = attrs.field(default="fp16", validator=dtyped)
    axes: Mapping[str, Sequence[int]] = attrs.field(factory=dict)
    """Of those that have tokens in other dimensions: which these are, of an example."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """One a tap."""
        return tuple(Part(name, self.dtype, name in self.tokens, self.axes.get(name, ())) for name in self.names)

    def facts(self) -> dict[str, Any]:
        """Its name and parts."""
        return stored("hidden", self.parts)

    def encode(self, outputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The tensors, in the dtype that they are kept in."""
        return [cast(name, given(outputs, name), self.dtype) for name in self.names]

    def decode(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors."""
        return dict(parts)


def inside(part: Part, dims: int, span: tuple[int, int]) -> tuple[slice, ...]:
    """Where in a part of an example, of so many dimensions, its tokens are."""
    axes = (0,) if part.tokens else part.axes
    return tuple(slice(*span) if axis in axes else slice(None) for axis in range(dims))


def stored(kind: str, parts: Sequence[Part], **options: Any) -> dict[str, Any]:
    """What a kind says of itself in the fingerprint."""
    return {"kind": kind, **options, "parts": [told(part) for part in parts]}


def told(part: Part) -> list[Any]:
    """A part in a fingerprint."""
    return [part.name, part.dtype, part.tokens, *([list(part.axes)] if part.axes else [])]


def parted(facts: Mapping[str, Any]) -> tuple[Part, ...]:
    """The parts, out of what a kind said of itself."""
    return tuple(Part(*fields) for fields in facts["parts"])


def given(outputs: Mapping[str, Tensor], name: str) -> Tensor:
    """One of the outputs, without its graph; raises CacheError when it is not there."""
    if name not in outputs:
        raise CacheError(f"the teacher gave no {name!r} to keep; {words.hint(name, outputs)}")
    return outputs[name].detach()


def logits(outputs: Mapping[str, Tensor], *, tokens: bool) -> Tensor:
    """The logits; raises CacheError unless they have the dimensions that were said."""
    found = given(outputs, "logits")
    if found.dim() != 2 + tokens:
        expected = "(B, L, C)" if tokens else "(B, C)"
        raise CacheError(f"logits of shape {tuple(found.shape)} cannot be kept; expected {expected}")
    return found


def cast(name: str, tensor: Tensor, dtype: str) -> Tensor:
    """A tensor as it is kept; raises CacheError where that loses more than digits: NaN, and numbers too large."""
    kept = tensor.to(FLOATS[dtype])
    if bool(kept.isnan().any()):
        raise CacheError(f"the teacher gave {name!r} with NaN in it, which is not kept")
    if kept.dtype != tensor.dtype and bool((kept.isinf() & ~tensor.isinf()).any()):
        raise CacheError(f"{name!r} holds numbers that are too large for {dtype}; keep it in bf16 or fp32")
    return kept
