"""Projections: built to measured widths, and tried on the first batch before anybody relies on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from hookbrew.config import Factory
from hookbrew.errors import ConfigError, HookbrewError, ObjectiveError, Problem
from hookbrew.modes import evaluating
from hookbrew.objective.source import Source


@attrs.frozen
class Made:
    """Stands where the options of a projection do, for one that the user's own function makes."""

    make: Callable[..., Any]
    """Called with student= and teacher=, the widths."""
    name: str

    def build(self, student: int, teacher: int) -> nn.Module:
        """A module that maps (..., S) to (..., D), S = student and D = teacher.

        Raises ObjectiveError when the function does not take the two widths, or gives no module.
        """
        try:
            made = self.make(student=student, teacher=teacher)
        except TypeError as error:
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                raise  # from inside the function, not about its arguments
            raise ObjectiveError(f"it is called with student= and teacher=, the widths: {error}") from error
        if not isinstance(made, nn.Module):
            raise ObjectiveError(f"{self.name} gave a {type(made).__name__}; expected a torch module")
        return made


def projected(source: Source, student: Tensor, teacher: Tensor | None) -> nn.Module | None:
    """The projection from the student's to the teacher's width, as precise as the student and where it is.

    Raises ConfigError, with its place, when it does not map the one to the other.
    """
    component = source.table.projection
    if component is None or teacher is None:
        return None
    assert not isinstance(component, Factory), "factories become components before an objective is made"
    with placed(f"{source.path}.projection" + (".factory" if component.type == "factory" else "")):
        built: nn.Module = component.options.build(student.shape[-1], teacher.shape[-1])
        built = built.to(student.device, student.dtype)
        require_mapped(source.name, built, student, teacher.shape[-1])
    return built


def require_mapped(name: str, projection: nn.Module, student: Tensor, width: int) -> None:
    """Raise ObjectiveError unless a projection maps the student's tensor (..., S) to (..., width)."""
    expected = (*student.shape[:-1], width)
    said = f"loss {name!r} projects the student's {tuple(student.shape)} to {expected}, and"
    try:
        with torch.no_grad(), evaluating(projection):
            given = projection(student)
    except RuntimeError as error:  # sizes that do not fit, in torch's own words
        reason = " ".join(str(error).split())
        raise ObjectiveError(f"{said} {type(projection).__name__} failed: {reason}") from error
    if not isinstance(given, Tensor):
        raise ObjectiveError(f"{said} {type(projection).__name__} gave a {type(given).__name__}")
    if given.shape != expected:
        raise ObjectiveError(f"{said} {type(projection).__name__} gave {tuple(given.shape)}")


@contextmanager
def placed(path: str) -> Iterator[None]:
    """A mistake inside has this place, unless it knows a better one."""
    try:
        yield
    except ConfigError:
        raise
    except HookbrewError as error:
        raise ConfigError([Problem(path, str(error))]) from error
    except Exception as error:
        error.add_note(f"raised by {path}")
        raise
