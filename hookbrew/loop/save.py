"""A model on disk, so that it loads without hookbrew: all of it, or nothing."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_model
from torch import Tensor, nn

from hookbrew.errors import FolderError
from hookbrew.loop.shards import gathered
from hookbrew.loop.snapshot import stored
from hookbrew.ranks import of
from hookbrew.taps import sharded, unwrap

EXTRAS = "extras.safetensors"
"""What was trained besides the student, to be read by `safetensors.torch.load_model` into `state.extras`."""


def save(model: nn.Module, folder: Path, extras: nn.Module | None = None) -> None:
    """Write a model into `folder`, which replaces one of the same name; extras that hold anything go beside it.

    A model of transformers is written by its own `save_pretrained`; any other as `student.safetensors`,
    to be read by `safetensors.torch.load_model` (tied weights are stored once). The folder is made beside
    its place and renamed, so that a name never stands for half a model.

    Of several processes the first one writes; all call this together, for a sharded student is gathered.
    Raises FolderError when it cannot be written; what stood there before still stands then.
    """
    ranks, weights = of(model), {m: gathered(m) for m in (unwrap(model), extras) if m is not None and sharded(m)}
    ranks.first(lambda: written(model, folder, extras, weights))


def written(
    model: nn.Module, folder: Path, extras: nn.Module | None, weights: Mapping[nn.Module, dict[str, Tensor]]
) -> None:
    """Write what a process has; weights: those of sharded models, whole."""
    fresh, old = (folder.with_name(f".{kind}-{folder.name}") for kind in ("new", "old"))
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        put(unwrap(model), fresh, weights.get(unwrap(model)))
        if extras is not None and extras.state_dict():
            store(extras, fresh / EXTRAS, weights.get(extras))
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        fresh.rename(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FolderError(f"the student cannot be written to {folder}: {reason}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def put(model: nn.Module, folder: Path, weights: dict[str, Tensor] | None) -> None:
    """The files of a model, into a folder that is there; weights: in place of its own, where it is sharded."""
    if hasattr(model, "save_pretrained"):
        given = {} if weights is None else {"state_dict": weights}
        model.save_pretrained(folder, **given)  # type: ignore[operator]  # a method of transformers' models
    else:
        store(model, folder / "student.safetensors", weights)


def store(model: nn.Module, path: Path, weights: dict[str, Tensor] | None) -> None:
    """The tensors of a model in one file, each once."""
    if weights is None:
        save_model(model, str(path))
    else:
        path.write_bytes(stored(weights))
