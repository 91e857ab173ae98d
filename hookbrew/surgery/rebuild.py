"""A transformers model made anew from a configuration, with tensors of another one.

It is what `from_pretrained` would make of the same configuration, so that saving and loading give it back bit for bit.
A model whose list of layers is merely replaced loads as one of the old depth, with other numbers and without an error.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hookbrew import words
from hookbrew.chance import kept_random
from hookbrew.errors import SurgeryError


def pretrained(model: nn.Module) -> bool:
    """Whether a model is of transformers: made from a configuration, saved and loaded with it."""
    config = getattr(model, "config", None)
    return all(map(callable, (getattr(config, "to_dict", None), getattr(type(model), "from_pretrained", None))))


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers under all their names."""
    found: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return found | dict(model.named_buffers(remove_duplicate=False))


def blank(teacher: nn.Module, config: Any, place: str = "meta") -> Any:
    """A model of the teacher's class from a configuration; by default without memory for tensors.

    Random states are as before. SurgeryError when the class refuses the configuration.
    """
    try:
        with kept_random(), torch.device(place):
            return type(teacher)(copy.deepcopy(config))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise SurgeryError(f"{type(teacher).__name__} refuses the changed configuration: {reason}") from error


def rebuilt(teacher: nn.Module, config: Any, found: Mapping[str, Tensor]) -> nn.Module:
    """`type(teacher)(config)` with copies of these tensors, each under the name that it has in the new model.

    What is one tensor under several names is one in the new model too. Buffers that no checkpoint holds may be left
    out, and are then computed anew from the configuration. Training mode, device and dtype are those of the teacher and
    of the tensors, the configuration of `generate` is copied; all that the class makes trainable is. Nothing is random,
    and the teacher is not touched.

    Raises SurgeryError for a tensor that is missing, left over or of another shape, for tensors that the configuration
    ties and that differ, and for a configuration that would not say the same once it was saved.
    """
    require_lasting(config)
    made = blank(teacher, config)
    require_same(made, found)
    filled(made, found)
    if any(value.is_meta for value in held(made)):
        made = blank(teacher, config, "cpu")
        filled(made, found)
        moved(made, found)
    made.tie_weights()
    require_tied(made, found)
    if getattr(teacher, "generation_config", None) is not None:
        made.generation_config = copy.deepcopy(teacher.generation_config)
    return made.train(teacher.training)  # type: ignore[no-any-return]  # transformers is not imported here


def held(model: nn.Module) -> Iterator[Tensor]:
    """All tensors of a model, those too that are plain attributes of a module."""
    yield from tensors(model).values()
    for module in model.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))


def require_lasting(config: Any) -> None:
    """Raise SurgeryError unless a configuration says the same after it was saved and loaded."""
    before = json.loads(config.to_json_string(use_diff=False))
    after = json.loads(type(config).from_dict(copy.deepcopy(before)).to_json_string(use_diff=False))
    changed = [key for key in before if before[key] != after.get(key)]
    if changed:
        raise SurgeryError(
            f"{type(config).__name__} does not say the same once it was saved: {changed[0]} is {before[changed[0]]!r},"
            f" and would be {after.get(changed[0])!r}"
        )


def require_same(made: nn.Module, found: Mapping[str, Tensor]) -> None:
    """Raise SurgeryError unless the tensors are those of the model, by names and shapes."""
    wanted = tensors(made)
    computed = wanted.keys() - made.state_dict().keys()
    name = type(made).__name__
    if missing := [key for key in wanted if key not in found and key not in computed]:
        raise SurgeryError(f"{name} needs {words.several(missing)}, and the teacher has none of that name")
    if more := [key for key in found if key not in wanted]:
        raise SurgeryError(f"{name} has no place for {words.several(more)} of the teacher")
    for key, tensor in found.items():
        if tensor.shape != wanted[key].shape:
            mine, given = tuple(wanted[key].shape), tuple(tensor.shape)
            raise SurgeryError(f"{key} of {name} is {mine} by its configuration, and the teacher's is {given}")
        if hasattr(tensor, "device_mesh"):
            raise SurgeryError(f"{key} of the teacher is sharded over processes; make the student before that")


def filled(made: nn.Module, found: Mapping[str, Tensor]) -> None:
    """Put copies of the tensors into a model; one that has several names is copied once."""
    copies: dict[int, Tensor] = {}
    for path, module in made.named_modules(remove_duplicate=False):
        for own in (module._parameters, module._buffers):
            for key, old in own.items():
                tensor = found.get(f"{path}.{key}" if path else key)
                if tensor is None or old is None:
                    continue
                if id(tensor) not in copies:
                    clone = tensor.detach().clone()
                    trained = old.requires_grad
                    copies[id(tensor)] = nn.Parameter(clone, trained) if isinstance(old, nn.Parameter) else clone
                own[key] = copies[id(tensor)]


def moved(made: nn.Module, found: Mapping[str, Tensor]) -> None:
    """Bring buffers that were computed anew to the device of the other tensors."""
    device = next((tensor.device for tensor in found.values()), torch.device("cpu"))
    for path, module in made.named_modules():
        for key, old in module._buffers.items():
            if old is not None and (f"{path}.{key}" if path else key) not in found:
                module._buffers[key] = old.to(device)


def require_tied(made: nn.Module, found: Mapping[str, Tensor]) -> None:
    """Raise SurgeryError when tying changed a tensor: the teacher's were not tied, though its configuration says so."""
    for key, tensor in made.named_parameters(remove_duplicate=False):
        if key in found and tensor.shape == found[key].shape and not torch.equal(tensor, found[key].detach()):
            raise SurgeryError(
                f"the configuration ties {key} to another tensor, and in the teacher they differ;"
                " set tie_word_embeddings = False in its configuration"
            )


def lists(model: nn.Module) -> dict[str, int]:
    """The lists of modules of a model, by path, with their lengths: containers whose children are numbered."""
    return {
        path: len(module._modules)
        for path, module in model.named_modules(remove_duplicate=False)
        if module._modules and all(name.isdigit() for name in module._modules)
    }


def renamed(name: str, keep: Mapping[str, Collection[int]]) -> str | None:
    """What the name of a tensor or module is in a student that keeps these layers; None for one that is left out."""
    for path, indices in keep.items():
        if name.startswith(f"{path}."):
            number, dot, rest = name[len(path) + 1 :].partition(".")
            if int(number) not in indices:
                return None
            return f"{path}.{list(indices).index(int(number))}{dot}{rest}"
    return name
