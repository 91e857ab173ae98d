"""What taps cost whatever the model: a hooked call, installing, resolving."""

from __future__ import annotations

from functools import partial

import torch
from measure import microseconds
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attend
from transformers import BertModel

from hookbrew.taps import Layout, Taps, tap


class Nothing(nn.Module):
    """Gives back what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Attention(nn.Module):
    """One attention on few numbers, after some operations that are none."""

    def __init__(self, operations: int) -> None:
        super().__init__()
        self.operations = operations

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.operations):
            x = torch.neg(x)
        return attend(x, x, x)


class Many(nn.Module):
    """Calls one module many times."""

    def __init__(self, inner: nn.Module, calls: int) -> None:
        super().__init__()
        self.inner, self.calls = inner, calls

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.calls):
            self.inner(x)
        return x


def fixed(model: BertModel, layout: Layout, device: torch.device, count: int) -> dict[str, float]:
    """Costs in microseconds that do not depend on the size of the model; least of `count` times."""
    calls, x = 1000, torch.ones(1, 1, 2, 2, device=device)
    least = partial(microseconds, count=count, device=device)

    def hooked(inner: nn.Module, port: str) -> tuple[float, float, float]:
        many = Many(inner, calls).eval()
        bare = least(partial(many, x))
        with tap(many, a=f"inner#*:{port}") as taps:
            idle, active = least(partial(many, x)), least(partial(taps.run, x))
        return bare / calls, (idle - bare) / calls, (active - bare) / calls

    nothing, idle, active = hooked(Nothing(), "out")
    pair = hooked(Attention(0), "attn")[2]
    more = hooked(Attention(10), "attn")[2]
    names = [f"encoder.layer[{i}]{tail}" for i in range(model.config.num_hidden_layers) for tail in ("", ".attention")]
    selectors = {name: name for name in names}
    taps = Taps(model, selectors)

    def install() -> None:
        with taps:
            pass

    return {
        "a call of a module that does nothing": nothing,
        "a hook that records": active,
        "a hook outside run()": idle,
        "a pair of hooks around an attention": pair,
        "each torch operation between those": (more - pair) / 10,
        f"install and remove {len(names)} taps": least(install),
        f"resolve {len(names)} paths": least(lambda: Taps(model, selectors)),
        "resolve hidden[*], layout known": least(lambda: Taps(model, {"a": "hidden[*]"}, layout=layout)),
    }
