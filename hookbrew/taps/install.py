"""The hooks of one Taps object, on their modules and off again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import nn

from hookbrew.errors import SelectorError
from hookbrew.taps.attention import ATTENTION
from hookbrew.taps.hook import Hook, Point, Store
from hookbrew.taps.tether import synced
from hookbrew.taps.watch import Closed, Enter, Leave


class Placed(NamedTuple):
    """A hook and where it goes."""

    path: str
    module: nn.Module
    before: bool
    call: Callable[..., None]


def placed(modules: dict[Point, nn.Module], store: Store) -> Iterator[Placed]:
    """The hooks for all points; one pair serves all attention ports of a module."""
    watched: dict[nn.Module, list[Point]] = {}
    for point, module in modules.items():
        if point.port in ATTENTION:
            watched.setdefault(module, []).append(point)
        else:
            hook = Hook(module, point, store)
            yield Placed(point.path, module, not point.late, hook if point.path else hook.keep)
    for module, group in watched.items():
        path, points = group[0].path, tuple(group)
        if isinstance(module, nn.MultiheadAttention) and type(module).forward is nn.MultiheadAttention.forward:
            yield Placed(path, module, False, Closed(module, points, store))
        else:
            yield Placed(path, module, True, Enter(module, points, store))
            yield Placed(path, module, False, Leave(module, points, store))


def require_ready(hooks: Installed | None, model: nn.Module, *, stop: bool) -> None:
    """Raise SelectorError for a run that would see nothing, or would go wrong in silence; stop: if it may end early."""
    if hooks is None:
        raise SelectorError("these taps are not installed: call run() inside `with tap(...) as taps:`")
    if stop and torch.is_grad_enabled() and synced(model):
        raise SelectorError(
            "a model whose gradients are synchronised cannot stop early: ranks would wait for each other, or drift"
            " apart; run it under torch.no_grad(), or without stop=True"
        )


class Installed:
    """Hooks that are on; `close()` takes all of them off, and so does an exception while they are put on.

    Those of the model itself are called by hand: torch.compile would leave a hook of the whole model outside.
    """

    def __init__(self, modules: dict[Point, nn.Module], store: Store) -> None:
        own: list[Placed] = []
        with ExitStack() as stack:
            for hook in placed(modules, store):
                if hook.path == "":
                    own.append(hook)
                elif hook.before:
                    stack.callback(hook.module.register_forward_pre_hook(hook.call, with_kwargs=True).remove)
                else:
                    stack.callback(hook.module.register_forward_hook(hook.call, with_kwargs=True).remove)
            self.close = stack.pop_all().close
        self.before = [hook for hook in own if hook.before]
        """The model's own hooks that run before it, given (module, args, kwargs)."""
        self.after = [hook for hook in own if not hook.before]
        """Those that run after it, given the output too."""
