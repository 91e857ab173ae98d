"""The last hidden state in the place of logits: as wide as the model and not as its vocabulary, with its head applied
again. B batch, L tokens, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from hookbrew.cache.kinds import Part, cast, dtyped, given, stored
from hookbrew.taps import unwrap


@attrs.frozen
class LastHidden:
    """What the head of a teacher is given, (B, D) or (B, L, D), out of which it computes the logits again."""

    head: nn.Module = attrs.field(repr=False, eq=False)
    path: str
    """Where the head is in the teacher."""
    given: torch.dtype
    """Of what the head is given."""
    dtype: str = attrs.field(default="fp32", validator=dtyped)
    tokens: bool = False
    """Whether it is (B, L, D)."""
    fast: torch.dtype | None = None
    """What autocast brought it and the head's weights to, which a teacher may switch on for itself; None for none."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The hidden state."""
        return (Part("hidden", self.dtype, self.tokens),)

    def facts(self) -> dict[str, Any]:
        """Its name and parts, and which head it is for."""
        return stored("last_hidden", self.parts, head=self.path)

    def encode(self, outputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The hidden state, in the dtype that it is kept in."""
        return [cast("hidden", given(outputs, "hidden"), self.dtype)]

    def decode(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The logits, by the teacher's own head."""
        hidden, dtype = parts["hidden"].to(self.given), self.fast or torch.bfloat16
        with torch.autocast(hidden.device.type, dtype=dtype, enabled=self.fast is not None):
            return {"logits": self.head(hidden)}


@contextmanager
def heard(kind: object) -> Iterator[dict[str, Tensor]]:
    """What a kind keeps besides what losses read, of the forward that is made inside: of `LastHidden` the state."""
    found = dict[str, Tensor]()
    with ExitStack() as stack:
        if isinstance(kind, LastHidden):
            hook = partial(noted, found)
            stack.callback(kind.head.register_forward_pre_hook(hook).remove)
        yield found


def noted(found: dict[str, Tensor], module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Remember what a head is given."""
    found["hidden"] = inputs[0]


@contextmanager
def heading(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Of the forward that is made inside, the linear layer that ran last: its path, itself, input and output, and the
    dtype of autocast there, None for none."""
    found = dict[str, Any]()

    def seen(path: str, module: nn.Linear, inputs: tuple[Any, ...], output: Any) -> None:
        device = module.weight.device.type
        fast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        found.update(path=path, head=module, input=inputs[0] if inputs else None, output=output, fast=fast)

    with ExitStack() as stack:
        for path, module in unwrap(model).named_modules():
            if isinstance(module, nn.Linear):
                hook = partial(seen, path)  # before a tap's, which may end the forward here
                stack.callback(module.register_forward_hook(hook, prepend=True).remove)
        yield found


def headed(found: Mapping[str, Any], logits: Tensor) -> bool:
    """Whether logits are what the last linear layer gave, as it was, so that it can compute them again."""
    output, state = found.get("output"), found.get("input")
    same = isinstance(output, Tensor) and output.shape == logits.shape and bool(torch.equal(output, logits))
    return same and isinstance(state, Tensor) and state.dim() == logits.dim()
