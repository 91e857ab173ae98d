"""One forward with a hook on every module: which modules ran, in what order, and where attention was computed.

Attention is seen as the functions that every implementation ends in: scaled_dot_product_attention,
multi_head_attention_forward, or a softmax over the last dimension of a tensor with three or more.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from threading import RLock, get_ident
from typing import Any, Final, TypeVar

import attrs
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hookbrew.chance import kept_random
from hookbrew.errors import SelectorError
from hookbrew.modes import kept
from hookbrew.taps.attention import ATTENTION
from hookbrew.taps.functions import MULTIHEAD, SDPA, SOFTMAX, weighed
from hookbrew.taps.pick import PREFERRED, fields, pick, shape
from hookbrew.taps.resolve import unwrap
from hookbrew.taps.selector import chosen

T = TypeVar("T")

KERNEL: Final = 9
"""How surely a kernel is attention; a softmax counts by its dimensions, of which a router's has least."""


ALONE: Final = RLock()
"""One probe at a time: two of one model would give each other's training flags back to it."""


@attrs.define(eq=False)
class Call:
    """One run of one module."""

    module: nn.Module
    number: int
    """Which run of this module it is, from 0."""
    parent: Call | None
    """The run of the module that called it."""
    began: int
    """How many calls had begun before this one did."""
    left: int = -1
    """How many calls had ended before this one did; -1 if it never came to an end."""
    shape: str = ""
    """Its whole output as text."""
    size: tuple[int, ...] = ()
    """The shape of the tensor that a tap without a pick reads from the output; () if there is none."""
    picked: str = ""
    """The pick of that tensor: `.logits`, `[0]`, or nothing if the output is the tensor."""
    signs: list[int] = attrs.field(factory=list)
    """What looked like attention in the module's own code, each by how surely it is."""
    attentions: int = 0
    """How many of them are attention."""

    def upward(self) -> Iterator[Call]:
        """The calls around this one, the nearest first."""
        call = self.parent
        while call is not None:
            yield call
            call = call.parent


@attrs.frozen(eq=False)
class Probe:
    """What happened in one forward."""

    calls: tuple[Call, ...]
    """In the order in which they began."""
    by: dict[nn.Module, list[Call]]
    """The calls of each module; those that were never called are not there."""
    within: dict[Call, list[Call]]
    """The calls that computed attention inside a call, or are it, in the order in which they began."""

    def of(self, module: nn.Module) -> list[Call]:
        """The calls of one module."""
        return self.by.get(module, [])

    def attentions(self, call: Call) -> list[Call]:
        """The calls inside a call, or itself, that computed attention in their own code."""
        return self.within.get(call, [])

    def shapes(self, module: nn.Module) -> tuple[str, ...]:
        """The outputs of a module, one text for each different one."""
        return tuple(dict.fromkeys(call.shape for call in self.of(module) if call.left >= 0))

    def ports(self, module: nn.Module) -> tuple[str, ...]:
        """What can be tapped besides inputs and outputs: attention, if each call computes it once."""
        counts = {call.attentions for call in self.of(module)}
        return ATTENTION if counts == {1} else ()


def probe(model: nn.Module, run: Callable[[], object]) -> Probe:
    """Call `run()`, which has to run `model` once, in eval mode and without gradients, and watch.

    Compiled code runs as the Python that it was made from. The model is left as it was found: training flags,
    hooks, and buffers that eval mode does not write; so are the random states of the CPU and the model's devices.
    """
    inner = unwrap(model)
    watch = Watch()
    with ExitStack() as stack:
        stack.enter_context(ALONE)
        stack.enter_context(kept(inner))
        stack.enter_context(kept_random(*{parameter.device for parameter in inner.parameters()}))
        for module in inner.modules():
            module.training = False
            if isinstance(module, torch.jit.ScriptModule):
                continue  # it runs without Python hooks
            stack.callback(module.register_forward_pre_hook(watch.enter).remove)
            stack.callback(module.register_forward_hook(watch.leave).remove)
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.no_grad())
        stack.enter_context(watch)
        run()
    return probed(watch.calls)


def lent(given: T) -> T:
    """A copy of what a model is called with: a forward that is not the user's own may fill a cache or a list.

    SelectorError for what cannot be copied, as a generator.
    """
    try:
        with Cloned():
            return copy.deepcopy(given)
    except Exception as error:
        raise SelectorError(
            f"the inputs cannot be copied for the forward that finds what aliases stand for ({error});"
            " give Taps(..., layout=discover(...)), or name the layers by their paths"
        ) from error


class Cloned(TorchFunctionMode):
    """Lets tensors with a history be copied."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__:
            return args[0].clone()
        return func(*args, **(kwargs or {}))


class Watch(TorchFunctionMode):
    """The hooks, and the ear for attention; nothing that it sees is changed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.running: list[Call] = []
        self.counts: dict[nn.Module, int] = {}
        self.ended = 0
        self.thread = get_ident()

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A module begins."""
        if get_ident() != self.thread:
            return
        number = self.counts.get(module, 0)
        self.counts[module] = number + 1
        call = Call(module, number, self.running[-1] if self.running else None, len(self.calls))
        self.calls.append(call)
        self.running.append(call)

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A module is done, and with it those inside that an exception ended, which the model caught."""
        if get_ident() != self.thread:
            return
        call = self.running.pop()
        while call.module is not module:
            call = self.running.pop()
        call.left, self.ended = self.ended, self.ended + 1
        call.shape = shape(output)
        call.picked, call.size = default(output)

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.running and (sign := sure(func, args, kwargs)):
            caller = self.running[-1]
            while isinstance(caller.module, nn.Softmax) and caller.parent is not None:
                caller = caller.parent
            caller.signs.append(sign)
        return func(*args, **kwargs)


def default(output: Any) -> tuple[str, tuple[int, ...]]:
    """The pick that a tap uses when none is written, as text, and the size of what it finds."""
    try:
        tensor = pick(output, (), "output")
    except SelectorError:
        return "", ()
    size = () if tensor.is_nested else tuple(tensor.shape)
    if isinstance(output, Tensor):
        return "", size
    key = next((key for key in PREFERRED if fields(output).get(key) is tensor), 0)
    return chosen((key,)), size


def sure(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """How surely a function is attention: KERNEL, or the dimensions of a softmax over the last; 0 if it is not."""
    if func in (SDPA, MULTIHEAD):
        return KERNEL
    return min(weighed(args, kwargs), KERNEL - 1) if func in SOFTMAX else 0


def probed(calls: list[Call]) -> Probe:
    """Decide which signs are attention, and index the calls."""
    by: dict[nn.Module, list[Call]] = {}
    for call in calls:
        by.setdefault(call.module, []).append(call)
    signs = inside(call for call in calls if call.signs)
    for call in calls:
        if call.signs and not outdone(call, signs):
            call.attentions = call.signs.count(max(call.signs))
    return Probe(tuple(calls), by, inside(call for call in calls if call.attentions))


def inside(calls: Iterable[Call]) -> dict[Call, list[Call]]:
    """Those of the calls that lie in a call, itself included, for each call that has any."""
    within: dict[Call, list[Call]] = {}
    for call in calls:
        for around in (call, *call.upward()):
            within.setdefault(around, []).append(call)
    return within


def outdone(call: Call, signs: dict[Call, list[Call]]) -> bool:
    """Whether a softmax is something else: the model's head around attention, or a router beside a surer sign."""
    own = max(call.signs)
    if own == KERNEL:
        return False
    if len(signs[call]) > 1:
        return True
    beside = next((signs[around] for around in call.upward() if len(signs[around]) > 1), [])
    return any(max(other.signs) > own for other in beside)
