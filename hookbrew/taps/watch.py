"""What an attention module does inside its call: a function mode that is on between two hooks.

The mode sees torch functions as the module calls them and passes them on unchanged. It finds
scaled_dot_product_attention, or a softmax over keys and the products around it. Kernels that are no torch
functions (flash-attn, flex_attention) cannot be found; reading the tap says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hookbrew.taps.attention import Dense, Soft, dense
from hookbrew.taps.hook import Live, Point, Record, Store
from hookbrew.taps.multihead import from_function, from_module

SOFTMAX: Final = (F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax)
PRODUCT: Final = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm)


class See(TorchFunctionMode):
    """Collects the attentions that run while it is on, as far as the ports need them."""

    def __init__(self, ports: frozenset[str]) -> None:
        super().__init__()
        self.ports = ports
        self.found: list[Record | str] = []
        self.products: list[tuple[Tensor, Tensor, int]] = []
        """Factors and last dimension of the products since the last softmax."""
        self.rows = torch.Size()
        """Dimensions of the last attention without its keys, (B, H, L)."""
        self.mixed = True
        """Whether the product of the last softmax with its values has been seen."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            self.rows = (args[0] if args else kwargs["query"]).shape[:-1]
            self.found.append(dense(args, kwargs, self.ports))
        elif func is F.multi_head_attention_forward:
            self.found.append(from_function(args, kwargs))
        elif func in PRODUCT:
            self.product(args[0], args[1] if len(args) > 1 else next(iter(kwargs.values())), output)
        elif func in SOFTMAX and output.dim() >= 3 and kwargs.get("dim", args[-1]) in (-1, output.dim() - 1):
            self.softmax(args[0] if args else kwargs["input"], output)
        return output

    def product(self, left: Tensor, right: Tensor, output: Tensor) -> None:
        """Scores are a product before the softmax; after it, values are multiplied by probabilities."""
        last = self.found[-1] if self.found else None
        if not self.mixed and isinstance(last, Soft) and left.shape[:-1] == self.rows:
            self.mixed = True
            if "v" in self.ports:
                self.found[-1] = last._replace(v=right)
        elif output.dim() >= 3:
            self.products.append((left, right, output.shape[-1]))

    def softmax(self, scores: Tensor, output: Tensor) -> None:
        """One attention; its scores are the first product with as many queries and not more keys."""
        self.rows, self.mixed = output.shape[:-1], False
        q = k = None
        keys = output.shape[-1]
        for left, right, last in self.products:
            if left.shape[-2] == output.shape[-2] and last in (keys, output.shape[-1] - 1):
                q, k, keys = left, right, last
                break
        self.products.clear()
        self.found.append(
            Soft(
                scores if "scores" in self.ports else None,
                output if "attn" in self.ports else None,
                q if "q" in self.ports else None,
                k if "k" in self.ports else None,
                None,
                output.shape[-1] - keys,
            )
        )


class Watch(Live):
    """What the hooks of an attention module share: its points, and how one call becomes a record."""

    def __init__(self, module: nn.Module, points: tuple[Point, ...], store: Store) -> None:
        super().__init__(module, store)
        self.points = points

    def keep(self, record: Record | str) -> None:
        """Put the record under each port."""
        if self.store.clone and not isinstance(record, str):
            record = cloned(record)
        tensors = () if isinstance(record, str) else record.tensors()
        for point in self.points:
            self.store.put(point, record, tensors)


class Enter(Watch):
    """Before the module: the mode goes on."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.mine(module):
            see = See(frozenset(point.port for point in self.points))
            see.__enter__()  # type: ignore[no-untyped-call]  # torch leaves it without annotations
            self.store.modes.append(see)


class Leave(Watch):
    """After the module: the mode goes off, and exactly one attention must have been seen."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self.mine(module):
            see = self.store.modes.pop()
            see.__exit__(None, None, None)
            self.keep(one(see, module, output))


class Closed(Watch):
    """After nn.MultiheadAttention, whose kernel may be closed to a mode: its inputs are kept."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self.mine(module):
            assert isinstance(module, nn.MultiheadAttention)
            self.keep(from_module(module, args, kwargs))


def cloned(record: Any) -> Record:
    """The record with tensors of its own; weights are still the model's."""
    copied: Record = type(record)(*(part.clone() if isinstance(part, Tensor) else part for part in record))
    return copied


def one(see: See, module: nn.Module, output: Any) -> Record | str:
    """The one attention of a call; a sentence if there is none, or several."""
    if len(see.found) == 1:
        record = see.found[0]
        return unpacked(record, see.rows[-1], module, output) if isinstance(record, Dense) else record
    what = f"expected one attention (sdpa or softmax) inside {type(module).__name__}, saw {len(see.found)}"
    if see.found:
        return f"{what}; name the modules inside that compute one each"
    return (
        f"{what}; the attention kernel is not interceptable (flash or flex attention?) or this module has none:"
        " load with attn_implementation='sdpa' or 'eager'"
    )


def unpacked(record: Dense, queries: int, module: nn.Module, output: Any) -> Record:
    """A decoding step of transformers lays the heads that share a key out as queries, where a mask is needed."""
    first = output[0] if isinstance(output, tuple) else output
    if queries == 1 or not isinstance(first, Tensor) or first.dim() != 3 or first.shape[1] != 1:
        return record
    groups = {getattr(inner, "num_key_value_groups", 1) for inner in module.modules()}
    return record._replace(packed=True, shared=queries) if queries in groups else record
