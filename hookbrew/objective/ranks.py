"""What is trained besides a student that FSDP2 has sharded: it is sharded too."""

from __future__ import annotations

from typing import Any

from torch import Tensor, distributed, nn

from hookbrew.ranks import of
from hookbrew.taps import resharded, sharded


def join(extras: nn.ModuleDict, student: nn.Module) -> None:
    """Shard extras over the mesh of a sharded student, rank 0's values; those beside any other are the loop's matter.

    No norm and few optimizers can mix sharded tensors with others. torch raises ValueError for a parameter without
    dimensions. Buffers stay each rank's own after the start.
    """
    if not sharded(student):
        return
    resharded(student)  # its mesh is known by the parameters that the optimizer gets
    mesh = next(p.device_mesh for p in student.parameters() if hasattr(p, "device_mesh"))
    of(student).alike([*extras.parameters(), *extras.buffers()])
    for module in dict.fromkeys(extras.values()):
        module.register_forward_hook(own)  # before FSDP2's own, which warns of views
        distributed.fsdp.fully_shard(module, mesh=mesh)


def own(module: nn.Module, given: Any, output: Any) -> Any:
    """An output that is no view: FSDP2 could not see it changed in place."""
    return output.clone() if isinstance(output, Tensor) and output._is_view() else output
