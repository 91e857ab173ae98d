"""What is trained besides a student whose gradients are averaged over ranks: it starts alike, and is averaged too."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from hookbrew.taps import resharded, sharded


def join(extras: nn.ModuleDict, student: nn.Module) -> None:
    """Let the ranks of a DDP or FSDP2 student train one set of extras: rank 0's at first, by averaged gradients.

    The student's wrapper knows nothing of them: each rank would train its own on its own data, and drift. Beside FSDP2
    they are sharded over the student's mesh, for no norm and few optimizers can mix its tensors with others; torch
    raises ValueError for a parameter without dimensions then. Buffers stay each rank's own after the start.
    """
    replica = next((module for module in student.modules() if isinstance(module, DistributedDataParallel)), None)
    if replica is not None:
        start(extras, replica.process_group)
        for parameter in extras.parameters():
            if parameter.requires_grad:
                hook = partial(average, replica.process_group)
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]  # torch has none
    elif sharded(student):
        resharded(student)  # its mesh is known by the parameters that the optimizer gets
        mesh = next(p.device_mesh for p in student.parameters() if hasattr(p, "device_mesh"))
        for dimension in range(mesh.ndim):
            start(extras, mesh.get_group(dimension))
        for module in dict.fromkeys(extras.values()):
            module.register_forward_hook(own)  # before FSDP2's own, which warns of views
            distributed.fsdp.fully_shard(module, mesh=mesh)


def start(extras: nn.Module, group: distributed.ProcessGroup) -> None:
    """Take the values of the group's rank 0."""
    for tensor in (*extras.parameters(), *extras.buffers()):
        distributed.broadcast(tensor.detach(), group=group, group_src=0)


def own(module: nn.Module, given: Any, output: Any) -> Any:
    """An output that is no view: FSDP2 could not see it changed in place."""
    return output.clone() if isinstance(output, Tensor) and output._is_view() else output


def average(group: distributed.ProcessGroup, parameter: Tensor) -> None:
    """The mean over ranks of what backward has accumulated; what it did before is equal on them, and stays."""
    assert parameter.grad is not None
    distributed.all_reduce(parameter.grad, group=group)
    parameter.grad /= group.size()
