"""Which features of a projection belong to which head, found by running a model once; no table of architectures.

The output of every weighted module is cut off from what made it, so that a gradient reaches only the modules whose
outputs flow straight into a place: q, k, v and the bias of an attention on one side, the input of a module on the
other. The pattern of that gradient says which features feed which head, through transposes, fused projections, rotary
embeddings and repeated keys alike. Letters: H heads of a tensor, L tokens, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Final

import attrs
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hookbrew.chance import kept_random
from hookbrew.modes import kept
from hookbrew.taps.functions import PRODUCT, SDPA, SOFTMAX, weighed

OUT: Final = "out"
IN: Final = "in"

End = tuple[str, str]
"""The path of a module, and one of its two ends: OUT or IN."""


@attrs.define(eq=False)
class Attention:
    """One attention that ran: for each end that touches it, (H, D) bool: whether a feature has to do with a head."""

    ends: dict[End, Tensor] = attrs.field(factory=dict)

    def add(self, end: End, pattern: Tensor) -> None:
        """What another of its tensors says of the same end."""
        before = self.ends.get(end)
        self.ends[end] = pattern if before is None else before | pattern


@attrs.define(eq=False)
class Trace(TorchFunctionMode):
    """The hooks, and the ear for attention. What it finds is in `attentions` and `sources`."""

    groups: int
    """Heads of keys and values: what a head of queries shares with others is one group."""
    heads: int
    consumers: Collection[str]
    """The modules of which the sources are wanted."""
    attentions: list[Attention] = attrs.field(factory=list)
    sources: dict[str, set[str]] = attrs.field(factory=dict)
    """The modules whose outputs reach the input of a consumer directly."""
    leaves: dict[Tensor, str] = attrs.field(factory=dict)
    mixed: tuple[Attention, Tensor] | None = None
    """The last attention and its output, which was cut off too."""
    softened: tuple[Attention, Tensor] | None = None
    """The last attention of which only the softmax was seen."""

    def __attrs_pre_init__(self) -> None:
        super().__init__()

    def leave(self, name: str, output: Any) -> Any:
        """A weighted module is done: the same values without a past; a copy, since models write into what they get."""
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        leaf = loose(output)
        self.leaves[leaf] = name
        return leaf.clone()

    def enter(self, name: str, value: Any) -> None:
        """A weighted module begins: what does its input come from?"""
        if not isinstance(value, Tensor) or not value.requires_grad:
            return
        if name in self.consumers:
            found = torch.autograd.grad(value.sum(), list(self.leaves), retain_graph=True, allow_unused=True)
            names = [
                self.leaves[leaf] for leaf, slope in zip(list(self.leaves), found, strict=True) if slope is not None
            ]
            self.sources.setdefault(name, set()).update(names)
        if self.mixed is not None:
            attention, leaf = self.mixed
            pattern = backward(value, leaf)
            if pattern is not None:
                attention.add((name, IN), self.grouped(pattern))
                self.mixed = None

    def feed(self, attention: Attention, tensor: Tensor) -> None:
        """q, k, v, the bias or the scores of an attention: (.., H, L, D). What do its heads come from?"""
        heads = tensor.shape[-3] if tensor.dim() > 2 else 1
        if not tensor.requires_grad or heads not in (self.heads, self.groups):
            return
        for leaf, pattern in forward(tensor, list(self.leaves)):
            attention.add((self.leaves[leaf], OUT), self.grouped(pattern))

    def grouped(self, pattern: Tensor) -> Tensor:
        """(H, D) of heads, or of groups already -> (groups, D)."""
        each = len(pattern) // self.groups
        return pattern.view(self.groups, each, -1).any(1).cpu()

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is SDPA:
            given = [*args[:4], *(kwargs[key] for key in ("query", "key", "value", "attn_mask") if key in kwargs)]
            return self.attended(Attention(), [part for part in given if isinstance(part, Tensor)], output)
        if func in SOFTMAX and weighed(args, kwargs):
            scores = args[0] if args else kwargs["input"]
            self.softened = Attention(), output
            self.feed(self.softened[0], scores)
        elif func in PRODUCT and self.softened is not None and alike(args[0], self.softened[1]):
            attention, self.softened = self.softened[0], None
            return self.attended(attention, [args[1]], output)
        return output

    def attended(self, attention: Attention, inputs: Sequence[Tensor], output: Tensor) -> Tensor:
        """An attention is done: its ends so far, and its output cut off, (.., H, L, D)."""
        for tensor in inputs:
            self.feed(attention, tensor)
        if attention.ends and output.dim() > 2 and output.shape[-3] == self.heads:
            self.attentions.append(attention)
            leaf = loose(output)
            self.mixed = attention, leaf
            return leaf.clone()
        return output


def loose(tensor: Tensor) -> Tensor:
    """The same values without a past, of which gradients can be asked for."""
    return tensor.detach().requires_grad_()


def alike(tensor: Tensor, weights: Tensor) -> bool:
    """Whether a factor of a product may be the weights of an attention, batch and heads in one dimension or two."""
    return tensor.shape[-2:] == weights.shape[-2:] and tensor.numel() == weights.numel()


def forward(tensor: Tensor, leaves: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """For each leaf that a tensor (.., H, L, D) comes from, (H, features of the leaf): does a feature reach a head?"""
    noise = torch.rand_like(tensor) + 0.5
    whole = torch.autograd.grad((tensor * noise).sum(), leaves, retain_graph=True, allow_unused=True)
    used = [leaf for leaf, slope in zip(leaves, whole, strict=True) if slope is not None]
    rows: list[list[Tensor]] = [[] for _ in used]
    for head in range(tensor.shape[-3]) if used else ():
        part = (tensor * noise).select(-3, head).sum()
        for row, slope in zip(rows, torch.autograd.grad(part, used, retain_graph=True), strict=True):
            row.append(touched(slope))
    return [(leaf, torch.stack(row)) for leaf, row in zip(used, rows, strict=True)]


def backward(tensor: Tensor, leaf: Tensor) -> Tensor | None:
    """(H, features of the tensor): does a head of a leaf (.., H, L, D) reach a feature? None if the leaf does not.

    By the derivative of a derivative: what reaches the leaf from a weight on each feature, by that weight.
    """
    weight = torch.rand_like(tensor).add(0.5).requires_grad_()
    slopes: Sequence[Tensor | None] = torch.autograd.grad(
        tensor, leaf, weight, retain_graph=True, create_graph=True, allow_unused=True
    )
    slope = slopes[0]
    if slope is None:
        return None
    rows = []
    for head in range(leaf.shape[-3]):
        (found,) = torch.autograd.grad(slope.select(-3, head).sum(), weight, retain_graph=True)
        rows.append(touched(found))
    return torch.stack(rows)


def touched(slope: Tensor) -> Tensor:
    """(.., D) -> (D,): where anything is not zero."""
    return (slope != 0).reshape(-1, slope.shape[-1]).any(0)


def weighted(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that have a matrix of their own, by path: projections, embeddings, convolutions."""
    return {
        name: module
        for name, module in model.named_modules()
        if any(parameter.dim() > 1 for parameter in module.parameters(recurse=False)) and not len(module._modules)
    }


def traced(model: nn.Module, run: Callable[[], object], trace: Trace) -> Trace:
    """Call `run()`, which has to run `model` once on one sample, in eval mode; the model is left as it was."""
    with ExitStack() as stack:
        stack.enter_context(kept(model))
        stack.enter_context(kept_random(*{parameter.device for parameter in model.parameters()}))
        model.eval()
        for name, module in weighted(model).items():
            stack.callback(module.register_forward_pre_hook(_before(trace, name), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(_after(trace, name)).remove)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(trace)
        run()
    return trace


def _before(trace: Trace, name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args[:1], *list(kwargs.values())[: not args]):
            trace.enter(name, value)

    return hook


def _after(trace: Trace, name: str) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return trace.leave(name, output)

    return hook
