"""What a model is run on to look at it, and what of a batch counts."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hookbrew.errors import SurgeryError

LENGTH = 6
"""Tokens of a sample that is made up."""


def called(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What `forward` is given: of a mapping what it has parameters for, of a tuple all, or the thing itself."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))

    def here(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    if not isinstance(batch, Mapping):
        return tuple(map(here, batch if isinstance(batch, tuple | list) else (batch,))), {}
    batch = {key: here(value) for key, value in batch.items()}
    known = inspect.signature(model.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()) and not known.keys() & batch.keys():
        return (), batch
    return (), {key: value for key, value in batch.items() if key in known}


def single(model: nn.Module, batches: Iterable[Any] | None) -> dict[str, Any] | tuple[Any, ...]:
    """One sample: the first row of the first batch, or one made up from the config of a transformers model.

    SurgeryError for a model whose inputs are neither tokens nor pixels, without batches.
    """
    if batches is not None:
        first = next(iter(batches), None)
        if first is None:
            raise SurgeryError("batches has none: give a list of batches, not an iterator that was used up")
        args, kwargs = called(model, first)
        return {key: row(value) for key, value in kwargs.items()} if kwargs else tuple(map(row, args))
    config: Any = getattr(model, "config", None)
    name = getattr(model, "main_input_name", "")
    device = next(model.parameters()).device
    if name == "pixel_values":
        size = config.image_size if isinstance(config.image_size, tuple | list) else [config.image_size] * 2
        return {name: torch.linspace(-1, 1, config.num_channels * size[0] * size[1], device=device).view(1, -1, *size)}
    if name != "input_ids":
        raise SurgeryError(
            f"{type(model).__name__} takes {name or 'inputs'} of which no sample can be made up; give batches"
        )
    ids = torch.arange(1, LENGTH + 1, device=device)[None] % config.vocab_size
    if isinstance(getattr(config, "eos_token_id", None), int):
        ids[0, -1] = config.eos_token_id  # some heads look for it
    both = (
        getattr(config, "is_encoder_decoder", False)
        and "decoder_input_ids" in inspect.signature(model.forward).parameters
    )
    return {name: ids, "decoder_input_ids": ids} if both else {name: ids}


def row(value: Any) -> Any:
    """The first sample of a tensor of several; anything else as it is."""
    return value[:1] if isinstance(value, Tensor) and value.dim() else value


def run(model: nn.Module, sample: dict[str, Any] | tuple[Any, ...]) -> Any:
    """The output for one sample, floats in the model's precision; SurgeryError says why a model fails."""
    first = next(p for p in model.parameters() if p.is_floating_point())

    def suited(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(first.device, first.dtype if value.is_floating_point() else value.dtype)

    try:
        if isinstance(sample, dict):
            return model(**{key: suited(value) for key, value in sample.items()})
        return model(*map(suited, sample))
    except SurgeryError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise SurgeryError(
            f"{type(model).__name__} does not run on the sample that it is looked at with ({reason});"
            " give batches that it takes, or other widths"
        ) from error


def mask(model: nn.Module, path: str, batch: Any, shape: torch.Size) -> Tensor | None:
    """(B, L) bool, what counts of a tensor (B, L, D) of a module; None where every position does.

    In the decoder of a model that has an encoder too, by decoder_attention_mask or the labels; elsewhere by
    attention_mask. SurgeryError for one that does not fit.
    """
    if not isinstance(batch, Mapping) or len(shape) != 3:
        return None
    found = batch.get("attention_mask")
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        inner = model.get_decoder()  # type: ignore[operator]  # of transformers
        if any(inner is part for part in above(model, path)):
            labels = batch.get("labels")
            found = batch.get("decoder_attention_mask")
            if found is None and labels is not None and labels.shape == shape[:2]:
                found = labels != -100
    if found is None or found.dim() != 2:
        return None
    if found.shape != shape[:2]:
        raise SurgeryError(
            f"the mask is {tuple(found.shape)}, and what '{path}' makes is {tuple(shape)}: which of its positions count"
            " is not known; leave the mask out, and give batches without padding"
        )
    valid: Tensor = found.bool()
    return valid


def above(model: nn.Module, path: str) -> list[nn.Module]:
    """The modules on the way to a path, itself included."""
    names = path.split(".")
    return [model.get_submodule(".".join(names[: end + 1])) for end in range(len(names))]
