"""The attention of one call, kept as references and computed when it is read.

What a watch finds is a record of tensors that the model made anyway; nothing is computed inside the forward.
That leaves the model's numbers alone, costs nothing that is not read, and survives gradient checkpointing,
which counts the tensors of a forward. Letters: B batch, H heads, L queries, S keys, D features of a head.

Scores are q k^T scaled, plus bias, -inf where a mask forbids; probabilities are their softmax over S
(Vaswani et al. 2017, eq. 1), before dropout, in fp32 at least. A query that may see no key at all has
probabilities 0 under scaled_dot_product_attention, as in torch; under an explicit softmax, whatever it gave.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor as is_wrapped
from torch.autograd.forward_ad import unpack_dual

from hookbrew.errors import SelectorError
from hookbrew.taps.products import products

ATTENTION: Final = ("attn", "scores", "q", "k", "v")
"""The ports of a module that computes one attention."""

GIVEN: Final = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
"""The positional parameters of F.scaled_dot_product_attention."""


class Dense(NamedTuple):
    """One scaled_dot_product_attention. What no port asks for is None."""

    q: Tensor | None
    """(B, H, L, D), or with fewer dimensions in front."""
    k: Tensor | None
    """(B, H or fewer, S, D): heads of queries may share a key."""
    v: Tensor | None
    mask: Tensor | None
    """Bool, True where a key may be seen, or added to the scores; broadcast to (B, H, L, S)."""
    causal: bool
    """Whether query i sees keys up to i, counted from the first of each."""
    scale: float | None
    shared: int = 1
    """How many heads of queries one key serves."""
    packed: bool = False
    """Whether those heads lie where queries do, (B, H / shared, shared, D), because there is one query only."""

    def tensors(self) -> tuple[Tensor | None, ...]:
        """What must not be written into before the record is read."""
        return self.q, self.k, self.v, self.mask

    @property
    def shape(self) -> torch.Size:
        """(B, H, L, S), or with fewer dimensions in front."""
        assert self.q is not None
        assert self.k is not None
        return torch.Size((*self.q.shape[:-1], self.k.shape[-2]))

    @property
    def apart(self) -> bool:
        """Whether the map of some samples comes from them alone, and no gradient but those of q and k is wanted."""
        if self.packed or self.q is None or self.k is None or not self.q.dim() == self.k.dim() == 4:
            return False
        mask, samples = self.mask, len(self.q)
        fits = mask is None or (not mask.requires_grad and (mask.dim() < 4 or len(mask) in (1, samples)))
        return fits and len(self.k) == samples

    def cut(self, samples: slice) -> Dense:
        """The same attention of some samples; v is left out."""
        assert self.q is not None
        assert self.k is not None
        mask = self.mask
        if mask is not None and mask.dim() == 4 and len(mask) > 1:
            mask = mask[samples]
        return self._replace(q=self.q[samples], k=self.k[samples], v=None, mask=mask)

    def read(self, port: str) -> Tensor:
        """attn and scores: (B, H, L, S); q, k, v: (B, H, L or S, D), shared keys and values repeated."""
        if port in ("attn", "scores"):
            assert self.q is not None
            with torch.autocast(self.q.device.type, enabled=False):
                return self.spread(self.probabilities() if port == "attn" else self.scores())
        kept = {"q": self.q, "k": self.k, "v": self.v}[port]
        assert kept is not None
        if port == "q":
            return self.spread(four(port, kept))
        kept = four(port, kept)
        return kept.repeat_interleave(self.shared, 1) if self.shared > 1 else kept

    def spread(self, found: Tensor) -> Tensor:
        """Heads where they belong, if they were packed."""
        return found.flatten(1, 2).unsqueeze(2) if self.packed else found

    def products(self) -> Tensor:
        """q k^T scaled, (B, H, L, S), without any mask."""
        assert self.q is not None
        assert self.k is not None
        scale = 1 / math.sqrt(self.q.shape[-1]) if self.scale is None else self.scale
        return products(self.q, self.k, scale, 1 if self.packed else self.shared)

    def allowed(self, scores: Tensor) -> Tensor | None:
        """The mask, the causal one written out."""
        if self.causal:
            return torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        return self.mask

    def scores(self) -> Tensor:
        """Scores, -inf where the mask forbids."""
        scores = self.products()
        mask = self.allowed(scores)
        if mask is None:
            return scores
        if mask.dtype == torch.bool:
            return scores.masked_fill(~mask, -torch.inf)
        return (scores + mask).masked_fill(forbidden(mask), -torch.inf)

    def probabilities(self) -> Tensor:
        """The softmax of the scores; 0 in rows without any key."""
        scores = self.products()
        mask = self.allowed(scores)
        if mask is None:
            return normalized(scores)
        choice = mask.dtype == torch.bool
        shut = ~mask if choice else mask == -torch.inf
        # Found in the mask, which has no heads: scores are larger. On a CPU, asking costs less than filling.
        asked = shut.device.type == "cpu"
        if asked and not shut.any():
            return normalized(scores if choice else biased(scores, mask))
        bias = torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(shut, -torch.inf) if choice else mask
        dead = shut.all(-1, keepdim=True)
        if asked and not dead.any():
            return normalized(biased(scores, bias))
        # A row of -inf alone would have a softmax of nan, and so a gradient of nan even where it is replaced.
        return normalized(biased(scores, bias.masked_fill(dead, 0))).masked_fill(dead, 0)


class Soft(NamedTuple):
    """One explicit softmax over keys, with the products around it as far as they were asked for."""

    scores: Tensor | None
    """What went in, (B, H, L, S)."""
    probabilities: Tensor | None
    """What came out."""
    q: Tensor | None
    k: Tensor | None
    """Transposed, (B, H, D, S), as it was multiplied."""
    v: Tensor | None
    sinks: int = 0
    """How many columns at the end are no keys (learned sinks, as in gpt-oss)."""

    def tensors(self) -> tuple[Tensor | None, ...]:
        """What must not be written into before the record is read."""
        return self.scores, self.probabilities, self.q, self.k, self.v

    def read(self, port: str) -> Tensor:
        """As the model computed them; SelectorError for q, k or v that did not go through a product in view."""
        kept = {"attn": self.probabilities, "scores": self.scores, "q": self.q, "k": self.k, "v": self.v}[port]
        if kept is None:
            unseen = f"{port} goes through no product that can be seen"
            raise SelectorError(f"{unseen}; load with attn_implementation='sdpa'")
        if port in ("attn", "scores"):
            kept = kept[..., : kept.shape[-1] - self.sinks]
            return kept if port == "attn" else kept.masked_fill(forbidden(kept), -torch.inf)
        return four(port, kept.mT if port == "k" else kept)


def dense(args: tuple[Any, ...], kwargs: dict[str, Any], ports: frozenset[str]) -> Dense:
    """What a call of F.scaled_dot_product_attention was given, as far as the ports need it."""
    given = dict(zip(GIVEN, args, strict=False)) | kwargs
    q, k = given["query"], given["key"]
    grouped = given.get("enable_gqa", False) or (q.dim() == 4 and k.shape[1] == 1)  # or broadcast, as falcon does
    whole = not ports.isdisjoint(("attn", "scores"))
    return Dense(
        q=q if whole or "q" in ports else None,
        k=k if whole or "k" in ports else None,
        v=given["value"] if "v" in ports else None,
        mask=given.get("attn_mask") if whole else None,
        causal=given.get("is_causal", False),
        scale=given.get("scale"),
        shared=q.shape[-3] // k.shape[-3] if grouped else 1,
    )


def forbidden(added: Tensor) -> Tensor:
    """Where scores, or a mask that is added to them, stand for minus infinity: some write the smallest number."""
    return added <= torch.finfo(added.dtype).min / 2


def spare(scores: Tensor) -> bool:
    """Whether scores that nobody else has may be overwritten: on a CPU, outside autograd and torch.func.

    New memory costs as much there as the arithmetic.
    """
    if type(scores) is not Tensor or scores.device.type != "cpu" or scores.requires_grad or is_wrapped(scores):
        return False
    return unpack_dual(scores).tangent is None  # type: ignore[no-untyped-call]  # torch leaves it without annotations


def biased(scores: Tensor, bias: Tensor) -> Tensor:
    """Scores plus a bias, in the memory of the scores if that is to spare."""
    return scores.add_(bias) if spare(scores) else scores + bias


def normalized(scores: Tensor) -> Tensor:
    """Softmax over the keys, in the memory of the scores if that is to spare."""
    return torch.softmax(scores, -1, out=scores) if spare(scores) else scores.softmax(-1)


def four(port: str, tensor: Tensor) -> Tensor:
    """The tensor, if it is (B, H, L, D); SelectorError says what it is instead."""
    if tensor.dim() != 4:
        raise SelectorError(
            f"{port} is {tuple(tensor.shape)} where the model multiplies it, not (batch, heads, tokens, features);"
            " tap the output of its projection"
        )
    return tensor


def densified(tensor: Tensor) -> Tensor:
    """A nested tensor filled up with zeros to its longest row; any other as it is."""
    return tensor.to_padded_tensor(0.0) if tensor.is_nested else tensor


def padding(nested: Tensor) -> Tensor:
    """The mask that a nested tensor (B, L, D) stands for, bool (B, L): True where there is a token."""
    lengths = torch.tensor([len(row) for row in nested.unbind()], device=nested.device)
    return torch.arange(int(lengths.max()), device=nested.device) < lengths[:, None]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    """A projection cut into heads: (B, L, F) to (B, H, L, D)."""
    return F.linear(x, weight, bias).reshape(*x.shape[:-1], heads, -1).transpose(1, 2)
