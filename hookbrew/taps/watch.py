"""What an attention module does inside its call: a function mode that is on between two hooks.

The mode sees torch functions as the module calls them and passes them on unchanged. It finds
scaled_dot_product_attention, or a softmax over keys and the products around it. Kernels that are no torch
functions (flash-attn, flex_attention) cannot be found; reading the tap says so.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hookbrew.taps.attention import Dense, Soft, dense
from hookbrew.taps.functions import MULTIHEAD, PRODUCT, SDPA, SOFTMAX, weighed
from hookbrew.taps.hook import Live, Point, Record, Store, versions
from hookbrew.taps.multihead import from_function, from_module

HEARD: Final = frozenset((SDPA, MULTIHEAD, *PRODUCT, *SOFTMAX))


class Product(NamedTuple):
    """A product of two tensors that may be the scores of an attention."""

    factors: tuple[Tensor, ...]
    """Both, if they are wanted."""
    written: tuple[int, ...]
    """Their versions."""
    rows: int
    """Of the left one."""
    size: torch.Size
    """Of the product."""


class See(TorchFunctionMode):
    """Collects the attentions that run while it is on, as far as the ports need them."""

    def __init__(self, path: str, ports: frozenset[str], *, clone: bool) -> None:
        super().__init__()
        self.path, self.ports, self.clone = path, ports, clone
        self.found: list[tuple[Record | str, tuple[int, ...]]] = []
        """Each with the versions of its tensors: the module may write into them before it ends."""
        self.products: list[Product] = []
        self.rows = torch.Size()
        """Dimensions of the last attention without its keys, (B, H, L)."""
        self.columns = 0
        """Width of the last softmax: its keys, and perhaps a sink."""
        self.mixed = True
        """Whether the product of the last softmax with its values has been seen."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in HEARD:  # most are not, and there may be twenty in an attention module
            self.hear(func, args, kwargs or {}, output)
        return output

    def hear(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Keep what the call says about an attention."""
        if func is MULTIHEAD:
            self.keep(from_function(args, kwargs))
        elif func is SDPA:
            self.kernel(args, kwargs)
        elif func in PRODUCT:
            other = "mat2" if "mat2" in kwargs else "other"
            self.product(args[0] if args else kwargs["input"], args[1] if args[1:] else kwargs[other], output)
        elif weighed(args, kwargs):
            self.softmax(args[0] if args else kwargs["input"], output)

    def keep(self, record: Record | str) -> None:
        """One attention more, as it is now."""
        self.found.append(current(record, clone=self.clone))

    def kernel(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """One scaled_dot_product_attention."""
        query = args[0] if args else kwargs["query"]
        mask = args[3] if args[3:] else kwargs.get("attn_mask")
        if query.is_nested:
            self.keep("attention over nested tensors cannot be read; give the model padded ones and a mask")
        elif biased(mask):
            self.keep("attention under a CausalBias cannot be read; give the mask as a tensor, or is_causal=True")
        else:
            self.rows = query.shape[:-1]
            self.keep(dense(args, kwargs, self.ports))

    def product(self, left: Tensor, right: Tensor, output: Tensor) -> None:
        """Scores are a product before the softmax; after it, values are multiplied by probabilities."""
        if output.is_nested:
            return
        if not self.mixed and left.shape[:-1] == self.rows and 0 <= self.columns - left.shape[-1] <= 1:
            self.mixed = True
            last, written = self.found[-1]
            if "v" in self.ports and isinstance(last, Soft):
                v = right.clone() if self.clone else right
                self.found[-1] = last._replace(v=v), (*written[:-1], *versions(v))
        elif output.dim() >= 3 and left.dim() >= 2:
            factors = () if self.ports.isdisjoint("qk") else (left, right)
            self.products.append(Product(factors, versions(*factors), left.shape[-2], output.shape))

    def softmax(self, scores: Tensor, output: Tensor) -> None:
        """One attention; its scores are the first product with as many queries and keys, or else a key less."""
        if output.is_nested:
            self.keep("attention over nested tensors cannot be read; give the model padded ones and a mask")
            return
        self.rows, self.columns, self.mixed = output.shape[:-1], output.shape[-1], False
        fitting = [
            product
            for product in self.products
            if product.rows == output.shape[-2]
            and math.prod(product.size[:-1]) == math.prod(self.rows)
            and product.written == versions(*product.factors)
        ]
        # Without a key: beside the keys, gpt-oss has a column that was learned.
        whole, less = ([p for p in fitting if p.size[-1] == self.columns - sinks] for sinks in (0, 1))
        factors, keys = next(((p.factors, p.size[-1]) for p in (*whole, *less)), ((), self.columns))
        q, k = factors or (None, None)
        self.keep(
            Soft(
                scores if "scores" in self.ports else None,
                output if "attn" in self.ports else None,
                q if "q" in self.ports else None,
                k if "k" in self.ports else None,
                None,
                self.columns - keys,
            )
        )


class Watch(Live):
    """What the hooks of an attention module share: its points, and how one call becomes a record."""

    def __init__(self, module: nn.Module, points: tuple[Point, ...], store: Store) -> None:
        super().__init__(module, store)
        self.points = points

    def keep(self, record: Record | str, written: tuple[int, ...]) -> None:
        """Put the record under each port."""
        for point in self.points:
            self.store.put(point, record, written)


class Enter(Watch):
    """Before the module: the mode goes on."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.mine(module):
            ports = frozenset(point.port for point in self.points)
            see = See(self.points[0].path, ports, clone=self.store.clone)
            see.__enter__()  # type: ignore[no-untyped-call]  # torch leaves it without annotations
            self.store.modes.append(see)


class Leave(Watch):
    """After the module: the mode goes off, and exactly one attention must have been seen."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self.mine(module):
            while True:  # what an exception ended that the model caught has not been left
                see = self.store.modes.pop()
                see.__exit__(None, None, None)
                if see.path == self.points[0].path:
                    break
            self.keep(*one(see, module, output))


class Closed(Watch):
    """After nn.MultiheadAttention, whose kernel may be closed to a mode: its inputs are kept."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self.mine(module):
            assert isinstance(module, nn.MultiheadAttention)
            self.keep(*current(from_module(module, args, kwargs), clone=self.store.clone))


def biased(mask: Any) -> bool:
    """Whether a mask is a CausalBias; where nobody imported its module, which takes seconds, there is none."""
    module = sys.modules.get("torch.nn.attention.bias")
    return module is not None and isinstance(mask, module.CausalBias)


def current(record: Record | str, *, clone: bool) -> tuple[Record | str, tuple[int, ...]]:
    """The record, and how often its tensors have been written into by now."""
    if isinstance(record, str):
        return record, ()
    if clone:
        record = cloned(record)
    return record, versions(*record.tensors())


def cloned(record: Any) -> Record:
    """The record with tensors of its own; weights are still the model's."""
    copied: Record = type(record)(*(part.clone() if isinstance(part, Tensor) else part for part in record))
    return copied


def one(see: See, module: nn.Module, output: Any) -> tuple[Record | str, tuple[int, ...]]:
    """The one attention of a call and the versions of its tensors; a sentence if there is none, or several."""
    if len(see.found) == 1:
        record, written = see.found[0]
        return unpacked(record, see.rows[-1], module, output) if isinstance(record, Dense) else record, written
    what = f"expected one attention (sdpa or softmax) inside {type(module).__name__}, saw {len(see.found)}"
    if see.found:
        return f"{what}; name the modules inside that compute one each", ()
    return (
        f"{what}; the attention kernel is not interceptable (flash or flex attention?) or this module has none:"
        " load with attn_implementation='sdpa' or 'eager'"
    ), ()


def unpacked(record: Dense, queries: int, module: nn.Module, output: Any) -> Record:
    """A decoding step of transformers lays the heads that share a key out as queries, where a mask is needed."""
    first = output[0] if isinstance(output, tuple) else output
    if queries == 1 or not isinstance(first, Tensor) or first.dim() != 3 or first.shape[1] != 1:
        return record
    groups = {getattr(inner, "num_key_value_groups", 1) for inner in module.modules()}
    return record._replace(packed=True, shared=queries) if queries in groups else record
