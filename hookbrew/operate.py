"""`[[surgery]]`: the edits of a configuration, made on a model that was just built."""

from __future__ import annotations

import attrs
import torch
from torch import nn

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
                operate(surgery, edit)
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


def operate(surgery: Surgery, edit: Edit) -> None:
    """Make one edit; raises SurgeryError for one that has left nothing in the journal, and so could not be undone."""
    mark = surgery.mark
    edit.options.build()(surgery)
    if surgery.mark == mark:
        raise SurgeryError(f"edit '{edit.type}' has changed nothing")
