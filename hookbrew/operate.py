"""`[[surgery]]`: the edits of a configuration, made on a model that was just built."""

from __future__ import annotations

import attrs
import torch
from torch import nn

from hookbrew import words
from hookbrew.config import Edit, Experiment
from hookbrew.errors import ConfigError, HookbrewError, Problem, SurgeryError
from hookbrew.loop import mix
from hookbrew.surgery import Surgery


def operated(experiment: Experiment, model: nn.Module, path: str) -> nn.Module:
    """The model, after the edits that name it by its path in the configuration; new weights are of seeds of their own.

    Raises ConfigError, at the table of the edit, for one that cannot be made.
    """
    surgery: Surgery | None = None
    for index, edit in enumerate(experiment.surgery):
        if edit.model == path:
            at = f"surgery[{index}]"
            torch.manual_seed(mix(experiment.seed, at))
            try:
                surgery = surgery or Surgery(model)
                before = ties(model)
                operate(surgery, edit)
                if path == "student":
                    savable(model, before)
            except ConfigError as error:
                inside = [attrs.evolve(p, path=f"{at}.{p.path}" if p.path else at) for p in error.problems]
                raise ConfigError(inside) from error
            except SurgeryError as error:
                key = f"{at}.path" if hasattr(edit.options, "path") else at
                raise ConfigError([Problem(key, str(error))]) from error
            except HookbrewError as error:
                raise ConfigError([Problem(at, str(error))]) from error
            except Exception as error:
                error.add_note(f"raised by {at}, edit {edit.type!r}")
                raise
    return model


def ties(model: nn.Module) -> set[frozenset[str]]:
    """The names of each parameter that has several."""
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {frozenset(some) for some in names.values() if len(some) > 1}


def savable(model: nn.Module, before: set[frozenset[str]]) -> None:
    """Raise SurgeryError for a model of transformers that shares weights under other names than before.

    Its configuration says by name what is tied: `save_pretrained` would fail at the end of the training, or what it
    wrote would be tied again when it is loaded.
    """
    changed = ties(model) ^ before
    if changed and hasattr(model, "save_pretrained"):
        names = words.several(sorted(min(changed, key=sorted)), most=3)
        raise SurgeryError(
            f"save_pretrained of {type(model).__name__} knows shared weights by name, and could not save it with other"
            f" ties than it had ({names}); edit a module that shares none, or set tie_word_embeddings=False"
        )


def operate(surgery: Surgery, edit: Edit) -> None:
    """Make one edit; raises SurgeryError for one that has left nothing in the journal, and so could not be undone."""
    mark = surgery.mark
    edit.options.build()(surgery)
    if surgery.mark == mark:
        raise SurgeryError(f"edit '{edit.type}' has changed nothing")
