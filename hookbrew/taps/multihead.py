"""torch's own multi-head attention: its probabilities from its inputs and weights.

nn.MultiheadAttention may run in one fused kernel, in which nothing can be seen, so the queries and keys are
projected again when they are read. Its masks are the reverse of scaled_dot_product_attention's: True forbids.
"""

from __future__ import annotations

import inspect
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hookbrew.taps.attention import Dense, densified, linear, padding

MODULE: Final = tuple(inspect.signature(nn.MultiheadAttention.forward).parameters)[1:]
FUNCTION: Final = tuple(inspect.signature(F.multi_head_attention_forward).parameters)


class Multihead(NamedTuple):
    """One call of multi-head attention. Inputs are (B, L, F), (L, F), or (L, B, F) unless batch_first."""

    query: Tensor
    key: Tensor
    value: Tensor
    key_padding_mask: Tensor | None
    """(B, S), True where a key is padding, or added to the scores."""
    attn_mask: Tensor | None
    """(L, S) or (B * H, L, S), True where a query may not see a key, or added to the scores."""
    weights: tuple[Tensor, ...]
    """Of query, key and value; or one that holds the three."""
    bias: Tensor | None
    """Of the three."""
    heads: int
    batch_first: bool

    def tensors(self) -> tuple[Tensor | None, ...]:
        """What must not be written into before the record is read."""
        return (self.query, self.key, self.value, self.key_padding_mask, self.attn_mask, *self.weights, self.bias)

    @property
    def shape(self) -> torch.Size:
        """(B, H, L, S)."""
        query, key = self.batched(self.query), self.batched(self.key)
        return torch.Size((len(query), self.heads, query.shape[1], key.shape[1]))

    @property
    def apart(self) -> bool:
        """Whether the map of some samples comes from them alone, and no gradient but those of q and k is wanted."""
        masks = (self.key_padding_mask, self.attn_mask)
        return not self.query.is_nested and not any(mask is not None and mask.requires_grad for mask in masks)

    def read(self, port: str) -> Tensor:
        """attn and scores: (B, H, L, S); q, k, v: (B, H, L or S, D)."""
        with torch.autocast(self.query.device.type, enabled=False):
            return self.dense(port).read(port)

    def dense(self, port: str) -> Dense:
        """The same attention as scaled_dot_product_attention takes it."""
        wanted = {"q": "q", "k": "k", "v": "v"}.get(port, "qk")
        weights = self.weights if len(self.weights) == 3 else self.weights[0].chunk(3)
        biases = (None, None, None) if self.bias is None else self.bias.chunk(3)
        projected = {
            name: linear(*alike(self.batched(x), weight, bias), self.heads)
            for name, x, weight, bias in zip("qkv", (self.query, self.key, self.value), weights, biases, strict=True)
            if name in wanted
        }
        mask = self.mask() if wanted == "qk" else None
        return Dense(projected.get("q"), projected.get("k"), projected.get("v"), mask, causal=False, scale=None)

    def batched(self, x: Tensor) -> Tensor:
        """(B, L, F), whatever the layout."""
        x = densified(x)
        if x.dim() == 2:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def mask(self) -> Tensor | None:
        """Both masks as one: bool, True where a key may be seen, or additive if one of them is."""
        found = list[Tensor]()
        if self.key.is_nested:
            found.append(padding(self.key)[:, None, None])
        if self.key_padding_mask is not None:
            keys = self.key_padding_mask if self.key_padding_mask.dim() == 2 else self.key_padding_mask[None]
            found.append(reverse(keys)[:, None, None])
        if self.attn_mask is not None:
            pairs = reverse(self.attn_mask)
            found.append(pairs if pairs.dim() == 2 else pairs.reshape(-1, self.heads, *pairs.shape[1:]))
        if all(mask.dtype == torch.bool for mask in found):
            return None if not found else found[0] if len(found) == 1 else found[0] & found[1]
        return sum(map(added, found[1:]), added(found[0]))


def alike(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """All in the more precise dtype: under autocast, inputs may be halves and weights are not."""
    dtype = torch.promote_types(x.dtype, weight.dtype)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def reverse(mask: Tensor) -> Tensor:
    """True where a key may be seen; what is added stays."""
    return ~mask if mask.dtype == torch.bool else mask


def added(mask: Tensor) -> Tensor:
    """A mask as numbers to add."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=torch.float).masked_fill(~mask, -torch.inf)


def from_module(module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Multihead | str:
    """The record of a call of the module."""
    given = dict(zip(MODULE, args, strict=False)) | kwargs
    own = {name: getattr(module, f"{name}_proj_weight") for name in "qkv"}
    return record(
        given | own | {"num_heads": module.num_heads, "in_proj_weight": module.in_proj_weight},
        bias=module.in_proj_bias,
        extra=module.bias_k is not None or module.add_zero_attn,
        batch_first=module.batch_first,
    )


def from_function(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Multihead | str:
    """The record of a call of F.multi_head_attention_forward."""
    given = dict(zip(FUNCTION, args, strict=False)) | kwargs
    own = {name: given.get(f"{name}_proj_weight") for name in "qkv"}
    if given.get("static_k") is not None or given.get("static_v") is not None:
        return "attention with static_k or static_v has keys and values of its own; it cannot be read"
    return record(
        given | own,
        bias=given["in_proj_bias"],
        extra=given["bias_k"] is not None or given["add_zero_attn"],
        batch_first=False,
    )


def record(given: dict[str, Any], *, bias: Tensor | None, extra: bool, batch_first: bool) -> Multihead | str:
    """What both have in common; a sentence if there are keys that come out of nowhere."""
    if extra:
        return "attention with add_bias_kv or add_zero_attn has keys that are no tokens; it cannot be read"
    packed = given["in_proj_weight"]
    return Multihead(
        query=given["query"],
        key=given["key"],
        value=given["value"],
        key_padding_mask=given.get("key_padding_mask"),
        attn_mask=given.get("attn_mask"),
        weights=(given["q"], given["k"], given["v"]) if packed is None else (packed,),
        bias=bias,
        heads=given["num_heads"],
        batch_first=batch_first,
    )
