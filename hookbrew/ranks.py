"""The processes of one training, and what they say to each other.

Tensors on a GPU go over NCCL. What is said about the training itself goes over gloo, between CPUs, so that no process
waits for its device; a group that the user made for NCCL alone says that by its device too.
"""

from __future__ import annotations

import gc
import os
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import attrs
import torch
from torch import Tensor, distributed, nn

from hookbrew.errors import ConfigError, HookbrewError, PeerError, Problem

T = TypeVar("T")


@attrs.frozen
class Ranks:
    """All processes that train one student; one alone says nothing to anybody."""

    rank: int = 0
    size: int = 1
    group: Any = None
    """The process group of torch; None for one process alone."""

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and speaks to the user."""
        return self.rank == 0

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, on each of them; of one process the tensor itself."""
        if self.size == 1:
            return tensor
        summed = tensor.clone()
        distributed.all_reduce(summed, group=self.group)
        return summed

    def most(self, numbers: Sequence[int]) -> list[int]:
        """The largest of each number over all processes, on each of them."""
        if self.size == 1:
            return list(numbers)
        told = torch.tensor(numbers, device=self._desk)
        distributed.all_reduce(told, op=distributed.ReduceOp.MAX, group=self.group)
        return [int(number) for number in told.tolist()]

    def each(self, value: T) -> list[T]:
        """The values of all processes in their order, on each of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value, group=self.group)
        return values

    def gathered(self, value: T) -> list[T]:
        """The values of all processes in their order, in the first one; elsewhere nothing, for they may be large."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.main else None
        distributed.gather_object(value, values, group=self.group, group_dst=0)
        return values or []

    def said(self, value: T) -> T:
        """What the first process says, on each of them."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, group=self.group, group_src=0)
        return values[0]

    def first(self, call: Callable[[], T]) -> T:
        """What a function gives in the first process, which alone calls it, on each of them.

        Its exception is raised there as it is, and in the others as PeerError.
        """
        if self.size == 1:
            return call()
        answer: tuple[Any, int | None, str] = (None, None, "")
        try:
            if self.main:
                answer = (call(), None, "")
        except Exception as error:
            answer = (None, error.exit_code if isinstance(error, HookbrewError) else 1, str(error))
            raise
        finally:
            value, code, reason = self.said(answer)
        if code is not None:
            raise PeerError(reason, code)
        return value  # type: ignore[no-any-return]  # what `call` gave, over the wire

    def rows(self, batch: int) -> Tensor:
        """Which rows of a batch are this process's, (ceil(batch / size),): at the end some are again the last one."""
        each = -(-batch // self.size)
        return torch.arange(self.rank * each, (self.rank + 1) * each).clamp(max=batch - 1)

    def whole(self, part: Tensor, batch: int) -> Tensor:
        """The rows of all processes that `rows` shared out, (batch, ...), on each of them."""
        parts = [torch.empty_like(part) for _ in range(self.size)]
        distributed.all_gather(parts, part.contiguous(), group=self.group)
        return torch.cat(parts)[:batch]

    def alike(self, tensors: Sequence[Tensor]) -> None:
        """Give all processes the values of the first one."""
        if self.size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor.detach(), group=self.group, group_src=0)

    def sum(self, number: int) -> int:
        """The sum of a number over all processes, on each of them."""
        return number if self.size == 1 else int(self.total(torch.tensor(number, device=self._desk)))

    @property
    def _desk(self) -> torch.device:
        """Where what is said lies: on the CPU, if the group has a way between CPUs."""
        between = "cpu:" in str(distributed.get_backend_config(self.group))
        return torch.device("cpu" if between else "cuda")


def world() -> Ranks:
    """All processes that torch knows of, or this one alone."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return Ranks()
    return Ranks(distributed.get_rank(), distributed.get_world_size(), distributed.group.WORLD)


def launched() -> int:
    """How many processes were started to train together, as torchrun tells them; 1 for one that nobody told."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined(device: str, timeout: float) -> Iterator[Ranks]:
    """The processes that torchrun or srun started meet; outside they are on their own again.

    device: as in `[train]`. timeout: seconds after which a process that waits for another gives up.
    Raises ConfigError for a device that all would share.
    """
    if launched() == 1 or distributed.is_initialized():
        yield world()
        return
    cuda = torch.cuda.is_available() and (device == "auto" or torch.device(device).type == "cuda")
    if cuda:
        if ":" in device:
            message = f"{device!r} is one GPU for all {launched()} processes; write 'cuda', and each takes its own"
            raise ConfigError([Problem("train.device", message)])
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(seconds=timeout), **meeting(timeout))
    try:
        yield world()
    except BaseException as error:
        # frames that are over still hold the wrapped student, and gloo aborts at exit where one is left: exit code -6
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        gc.collect()
        distributed.destroy_process_group()


def meeting(timeout: float) -> dict[str, Any]:
    """Where the processes meet, for `init_process_group`; empty for the place that the environment names.

    After a restart the store of torchrun still has the addresses of the processes that died (pytorch issue 135712), so
    each attempt has keys of its own.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # of C++, mypy does not see them

    store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return {
        "store": PrefixStore(f"hookbrew/{attempt}", store),
        "rank": int(os.environ["RANK"]),
        "world_size": launched(),
    }


def leading() -> bool:
    """Whether this process is to be the first one, before they have met."""
    return int(os.environ.get("RANK", "0")) == 0


def shard(model: nn.Module) -> None:
    """Share a model's parameters out over all processes by FSDP2: those of each layer, then what is left.

    Raises ConfigError for a model that torch cannot shard, as one with a parameter without dimensions.
    """
    from torch.distributed.fsdp import fully_shard

    # of an output that somebody might change in place, and nobody does: losses leave what they read as it is
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    try:
        for layer in layers(model):
            fully_shard(layer)
        fully_shard(model, reshard_after_forward=True)
    except ValueError as error:
        raise ConfigError([Problem("train.shard", str(error))]) from error


def layers(model: nn.Module) -> list[nn.Module]:
    """What the outermost lists of a model hold, each once; in place of lists and dicts in those, what they hold.

    Without those that share a parameter with anything else: torch has it in one part of a sharded model only. And
    without a linear layer by itself: it would give a view, which torch cannot guard.
    """
    stacks = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outer = [stack for name, stack in stacks.items() if not any(name.startswith(f"{other}.") for other in stacks)]
    found = dict.fromkeys(layer for stack in outer for layer in held(stack) if any(layer.children()))
    inner = {module for layer in found for module in layer.modules()}
    uses = Counter(id(p) for m in model.modules() if m not in inner for p in m.parameters(recurse=False))
    uses.update(id(p) for layer in found for p in layer.parameters())
    return [layer for layer in found if all(uses[id(p)] == 1 for p in layer.parameters())]


def held(stack: nn.Module) -> Iterator[nn.Module]:
    """What a list holds; of a list or dict in it, which nobody calls, what that holds."""
    for module in stack.children():
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            yield from held(module)
        else:
            yield module


def of(student: nn.Module) -> Ranks:
    """The processes that train this student: those of its wrapper, or else all that torch knows of.

    Raises ConfigError for a student that FSDP2 has sharded over only some of them.
    """
    everyone = world()
    if everyone.size == 1:
        return everyone
    for module in student.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            group = module.process_group
            return Ranks(distributed.get_rank(group), distributed.get_world_size(group), group)
    for parameter in student.parameters():
        mesh = getattr(parameter, "device_mesh", None)
        if mesh is not None and mesh.size() != everyone.size:
            message = f"the student is sharded over {mesh.size()} of {everyone.size} processes; shard it over all"
            raise ConfigError([Problem("student", message)])
    return everyone
