"""What FSDP2 has sharded, in checkpoints: each process writes and reads its own part, by torch.distributed.checkpoint.

A tensor is stored under the name of its place, as `student.head.weight` or `optimizer.3.exp_avg`, so that any number of
processes can read it, sharded or not.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hookbrew.ranks import Ranks, world
from hookbrew.store import Checkpoint
from hookbrew.taps import sharded, unwrap

FOLDER = "shards"
"""Where they are, in the folder of a checkpoint."""


def spread(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor sharded over processes as another one is, each having all of it; itself if that is whole."""
    if not hasattr(like, "device_mesh") or hasattr(tensor, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]  # it is one of FSDP2
    return distribute_tensor(tensor.to(like.device), mesh, placements, src_data_rank=None)


def whole(value: Any) -> Any:
    """A value in which nothing is sharded any more, however it is nested; all processes call this together."""
    if isinstance(value, Mapping):
        return {key: whole(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [whole(part) for part in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def parted(models: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], Any]:
    """All tensors of a training by their places, and what is left of the optimizer; nothing, if none is sharded."""
    if not any(map(sharded, models.values())):
        return {}, optimizer.state_dict()
    left = optimizer.state_dict()
    found = dict(placed(models))
    for number, known in left["state"].items():
        found |= {f"optimizer.{number}.{name}": value for name, value in known.items() if isinstance(value, Tensor)}
    rest = {n: {k: v for k, v in known.items() if not isinstance(v, Tensor)} for n, known in left["state"].items()}
    return found, {**left, "state": rest}


def placed(models: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """The weights and buffers of models under their places; tensors of several names under each."""
    for kind, model in models.items():
        for name, tensor in unwrap(model).state_dict().items():
            yield f"{kind}.{name}", tensor


def put(tensors: Mapping[str, Tensor], folder: Path, ranks: Ranks) -> None:
    """Write them, each process what it has; raises OSError when one of them cannot."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        save(dict(tensors), checkpoint_id=folder / FOLDER, process_group=ranks.group)
    except CheckpointException as error:
        reasons = [failure[0] for failure in error.failures.values()]
        raise next((each for each in reasons if isinstance(each, OSError)), OSError(str(reasons[0]))) from error


def got(
    checkpoint: Checkpoint, models: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, ranks: Ranks
) -> dict[str, Any]:
    """Fill the models with what was written, and give the optimizer's state, each process what it needs."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = FileSystemReader(checkpoint.folder / FOLDER)
    written = reader.read_metadata().state_dict_metadata
    wanted = dict(placed(models))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[str, Any] = torch.load(
        io.BytesIO(checkpoint.read("optimizer.pt")), map_location="cpu", weights_only=True
    )
    for place, described in written.items():
        kind, *inside = place.split(".")
        if kind == "optimizer" and isinstance(described, TensorStorageMetadata):
            number, name = int(inside[0]), ".".join(inside[1:])
            parameter, size, dtype = parameters[number], described.size, described.properties.dtype
            shaped = size == parameter.shape
            made = torch.empty_like(parameter, dtype=dtype) if shaped else torch.empty(size, dtype=dtype)
            state["state"][number][name] = wanted[place] = made.detach()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # so it is, of one process
        load(wanted, storage_reader=reader, process_group=ranks.group, no_dist=ranks.size == 1)
    for kind, model in models.items():  # tensors are filled by now; what modules keep besides is theirs to take
        unwrap(model).load_state_dict({name: wanted[f"{kind}.{name}"] for name in unwrap(model).state_dict()})
    return state


def gathered(model: nn.Module) -> dict[str, Tensor]:
    """All weights and buffers of a sharded model, whole; on the CPU of the first process, which alone has them.

    What has several names is one tensor under all of them, as in the model.
    """
    found, seen = dict[str, Tensor](), dict[int, Tensor]()
    tied = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    for name, tensor in model.state_dict().items():
        key = tied.get(name, id(tensor))
        if key not in seen:
            full = whole(tensor).detach()
            seen[key] = full.cpu() if world().main else torch.empty(0)
        found[name] = seen[key]
    return found if world().main else {}
