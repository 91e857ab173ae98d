"""Models of transformers by folder or hub name: built from their configuration alone, to be looked at."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hookbrew import words
from hookbrew.errors import HookbrewError

T = TypeVar("T")

Look = Callable[[nn.Module, Callable[[], object]], T]
"""Given a model, and a function that runs it once."""

LENGTH = 8
"""How many tokens the made-up inputs have."""


def looked(name: str, look: Look[T]) -> T:
    """Build a model with random weights, and call look(model, run); run() passes two made-up samples through it.

    The weights of the model are not read, nor downloaded. It is built without memory, on torch's meta device, or
    on the CPU if its forward asks for the value of a number. Raises HookbrewError when transformers is missing, the
    name leads to no model, or the model does not run on inputs like these.
    """
    build = builder(name)
    try:
        return tried(build, look, torch.device("meta"))
    except Exception:  # of any kind: what needs numbers fails in its own way
        return once(build, look)


def bare(name: str) -> nn.Module:
    """A model without memory, on torch's meta device: its shapes, not its numbers. Raises HookbrewError."""
    build = builder(name)
    try:
        with torch.device("meta"):
            return build()
    except Exception as error:
        raise HookbrewError(
            f"this model cannot be built from its configuration alone: {type(error).__name__}: {line(error)}"
        ) from error


def loaded(folder: str) -> nn.Module:
    """The model of a folder with its weights, in evaluation mode; nothing is downloaded.

    Raises HookbrewError where it cannot be read, or some of its weights are not there.
    """
    transformers = library(folder)
    architecture = saved(transformers, configuration(transformers, folder)) or transformers.AutoModel
    try:
        with hushed(transformers.utils.logging):
            model, info = architecture.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise HookbrewError(f"the model in {folder!r} cannot be read: {line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        lacking = words.several(missing, most=3)
        raise HookbrewError(f"the files in {folder!r} lack weights of {type(model).__name__}: {lacking}")
    return model.eval()  # type: ignore[no-any-return]  # a module


@contextmanager
def hushed(log: Any) -> Iterator[None]:
    """transformers draws no progress and writes no report inside; log: its own module of that name."""
    bar, level = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bar:
            log.enable_progress_bar()


def once(build: Callable[[], nn.Module], look: Look[T]) -> T:
    """The look at a model on the CPU, with a failure told in one line."""
    try:
        return tried(build, look, torch.device("cpu"))
    except HookbrewError:
        raise
    except Exception as error:
        raise HookbrewError(
            f"this model cannot be built and run from its configuration alone: {type(error).__name__}: {line(error)};"
            " write a configuration with its data, and look at that"
        ) from error


def tried(build: Callable[[], nn.Module], look: Look[T], device: torch.device) -> T:
    """The look at a model on one device."""
    with torch.random.fork_rng(devices=[]), device:
        model = build()
        batch = inputs(model)
        return look(model, lambda: model(**batch))


def builder(name: str) -> Callable[[], nn.Module]:
    """What builds the model of a folder or of a name on the hub: the class that its configuration was saved from."""
    transformers = library(name)
    config = configuration(transformers, name)
    if found := saved(transformers, config):
        return lambda: found(config)
    return lambda: transformers.AutoModel.from_config(config)


def library(name: str) -> Any:
    """transformers; raises HookbrewError where it is missing."""
    try:
        return import_module("transformers")
    except ModuleNotFoundError as error:
        raise HookbrewError(
            f'{name!r} is no .toml file; to read it as a model of transformers: pip install "hookbrew[hf]"'
        ) from error


def saved(transformers: Any, config: Any) -> Any:
    """The class that a configuration was saved from; None if transformers has none of that name."""
    found = (getattr(transformers, name, None) for name in config.architectures or ())
    return next((each for each in found if each is not None), None)


def configuration(transformers: Any, name: str) -> Any:
    """The configuration of a model; HookbrewError says why there is none."""
    if os.path.isdir(name) and not os.path.isfile(os.path.join(name, "config.json")):
        raise HookbrewError(f"the folder {name!r} has no config.json, so it is no model of transformers")
    if not os.path.exists(name) and (name.startswith((".", os.sep, "~")) or name.count("/") > 1):
        raise HookbrewError(f"there is no file or folder {name!r}")
    try:
        return transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        near = words.nearest(name, set(folders(os.path.dirname(name))) - {name})
        meant = f"; did you mean the folder {near!r}?" if near else ""
        raise HookbrewError(f"transformers knows no model {name!r}: {line(error)}{meant}") from error


def folders(parent: str) -> list[str]:
    """The folders in a folder that hold a model."""
    names = os.listdir(parent or ".") if os.path.isdir(parent or ".") else []
    found = [os.path.join(parent, name) for name in names]
    return [path for path in found if os.path.isfile(os.path.join(path, "config.json"))]


def line(error: Exception) -> str:
    """The first line of what an exception says."""
    return next(iter(str(error).strip().splitlines()), "").rstrip(" .:")


def inputs(model: Any) -> dict[str, Tensor]:
    """Two samples of the kind that a model takes: images, or tokens without padding. On torch's default device."""
    config, main = model.config, model.main_input_name
    if main == "pixel_values":
        return {"pixel_values": torch.rand(2, getattr(config, "num_channels", 3), *sides(config))}
    if main != "input_ids":
        raise HookbrewError(
            f"{type(model).__name__} takes {main!r}, which cannot be made up;"
            " write a configuration with its data, and look at that"
        )
    tokens = ids(config.get_text_config())
    decoder = config.is_encoder_decoder and "decoder_input_ids" in inspect.signature(model.forward).parameters
    return {"input_ids": tokens, **({"decoder_input_ids": tokens} if decoder else {})}


def sides(config: Any) -> tuple[int, int]:
    """Height and width of the images of a configuration."""
    size = getattr(config, "image_size", None) or 224
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def ids(config: Any) -> Tensor:
    """Tokens (2, LENGTH) that are not padding, and end as sentences do."""
    special = {getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "sep", "cls", "mask")}
    plain = [number for number in range(min(config.vocab_size, 100)) if number not in special] or [0]
    row = [plain[place % len(plain)] for place in range(LENGTH)]
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int) and end < config.vocab_size:
        row[-1] = end
    return torch.tensor([row, row])
