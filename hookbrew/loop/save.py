"""A model on disk, so that it loads without hookbrew: all of it, or nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_model
from torch import nn

from hookbrew.errors import FolderError
from hookbrew.taps import unwrap

EXTRAS = "extras.safetensors"
"""What was trained besides the student, to be read by `safetensors.torch.load_model` into `state.extras`."""


def save(model: nn.Module, folder: Path, extras: nn.Module | None = None) -> None:
    """Write a model into `folder`, which replaces one of the same name; extras that hold anything go beside it.

    A model of transformers is written by its own `save_pretrained`; any other as `student.safetensors`,
    to be read by `safetensors.torch.load_model` (tied weights are stored once). The folder is made beside
    its place and renamed, so that a name never stands for half a model.

    Raises FolderError when it cannot be written; what stood there before still stands then.
    """
    fresh, old = (folder.with_name(f".{kind}-{folder.name}") for kind in ("new", "old"))
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        put(unwrap(model), fresh)
        if extras is not None and extras.state_dict():
            save_model(extras, str(fresh / EXTRAS))
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


def put(model: nn.Module, folder: Path) -> None:
    """The files of a model, into a folder that is there."""
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)  # type: ignore[operator]  # a method of transformers' models
    else:
        save_model(model, str(folder / "student.safetensors"))
