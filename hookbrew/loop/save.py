"""A model on disk, so that it loads without hookbrew: all of it, or nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import save_model
from torch import nn

from hookbrew.taps import unwrap


def save(model: nn.Module, folder: Path) -> None:
    """Write a model into `folder`, which replaces one of the same name.

    A model of transformers is written by its own `save_pretrained`; any other as `student.safetensors`,
    to be read by `safetensors.torch.load_model` (tied weights are stored once). The folder is made beside
    its place and renamed, so that a name never stands for half a model.
    """
    model = unwrap(model)
    fresh, old = (folder.with_name(f".{kind}-{folder.name}") for kind in ("new", "old"))
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(fresh)  # type: ignore[operator]  # a method of transformers' models
    else:
        save_model(model, str(fresh / "student.safetensors"))
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
