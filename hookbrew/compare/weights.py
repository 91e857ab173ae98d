"""Weights in files: how large they are, and how they come into a model."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn

from hookbrew import words
from hookbrew.errors import FolderError, HookbrewError
from hookbrew.loop.save import EXTRAS

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


def disk(folder: Path) -> int | None:
    """Bytes of the weights in a folder, in one format if there are several; None if there are none."""
    for suffix in SUFFIXES:
        files = [path for path in folder.glob(f"*{suffix}") if path.name not in (EXTRAS, "training_args.bin")]
        if files:
            return sum(path.stat().st_size for path in files)
    return None


def filled(module: nn.Module, path: Path) -> None:
    """Give a model the weights of a file, all of them and no other.

    Raises FolderError for a file that cannot be read, and HookbrewError for weights that do not fit.
    """
    if path.suffix not in SUFFIXES:
        raise FolderError(f"{path} is no file of weights: its name ends in none of {', '.join(SUFFIXES)}")
    if not path.is_file():
        beside = [str(other) for other in path.parent.glob("*") if other.suffix in SUFFIXES]
        raise FolderError(f"there is no file {str(path)!r}; {words.hint(str(path), beside)}")
    try:
        if path.suffix == ".safetensors":
            load_model(module, str(path))
        else:
            module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise FolderError(f"{path} cannot be read: {line(error)}") from error
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise HookbrewError(f"{path} does not fit {type(module).__name__}: {line(error)}") from error


def line(error: Exception) -> str:
    """What an exception says, in one line."""
    return " ".join(str(error).split())[:300]
