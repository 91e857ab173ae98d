"""Parts of the student that are not trained for a while."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
from attrs.validators import min_len
from torch import nn

from hookbrew.errors import ConfigError, Problem
from hookbrew.loop import State
from hookbrew.plugin import options
from hookbrew.taps import modules, unwrap

Point = int | float | None
HELD = "keeping parts as they are is what it is for"


def point(_: Any, attribute: Any, value: Point) -> None:
    """A validator of attrs: raises ValueError unless it is a number of steps, or a share of the training."""
    if isinstance(value, int) and value < 1:
        raise ValueError(f"'{attribute.name}' must be a number of steps, 1 or more: {value}")
    if isinstance(value, float) and not 0 < value <= 1:
        raise ValueError(f"'{attribute.name}' must be a share of the training above 0.0, up to 1.0: {value}")


@options
class Freeze:
    """Keeps the parameters of some of the student's modules as they are, for a part of the training.

    They get no gradient, and so optimizers skip them, weight decay included. Projections and what else is trained
    beside the student go on, as do dropout and buffers, as the statistics of batch norm. A parameter that a module
    outside shares is frozen there too; where several of these callbacks name one, it is frozen while any of them says
    so. All is derived from the step, so that a run that is resumed needs no memory of it.
    """

    exempt: ClassVar[dict[str, str]] = {"weights_untouched": HELD, "models_untouched": HELD, "state_untouched": HELD}

    modules: list[str] = attrs.field(validator=min_len(1))
    """Paths of modules, as in selectors: encoder.layer[0:4], embeddings, or a container as encoder.layer."""
    until: int | float | None = attrs.field(default=None, validator=point)
    """How long: 100 is the first 100 steps, 0.1 (with a point) the first tenth; to the end when left out."""
    after: int | float | None = attrs.field(default=None, validator=point)
    """What comes before: 100 steps are trained first, or with 0.1 the first tenth; frozen at once when left out."""

    def build(self) -> Frost:
        """The callback."""
        return Frost(tuple(self.modules), self.until, self.after)


@attrs.define(eq=False)
class Frost:
    """Thaws at the end of a step and freezes at the start of one, so that several agree in whatever order they are."""

    _modules: tuple[str, ...]
    _until: Point
    _after: Point
    _parameters: list[nn.Parameter] = attrs.field(factory=list)
    """What of the modules is trained otherwise."""

    def run_start(self, state: State) -> None:
        """Find the parameters, before any of these callbacks has frozen one.

        Raises SelectorError for a path without a module, and ConfigError when nothing would be frozen, or all is.
        """
        if not any(self._frozen(step, state.total_steps) for step in range(1, state.total_steps + 1)):
            until = "" if self._until is None else f" and until {self._until}"
            raise mistake(f"no step of {state.total_steps} comes after {self._after}{until}")
        student = unwrap(state.student)
        found = [modules(student, text) for text in self._modules]
        for text, matched in zip(self._modules, found, strict=True):
            if not any(p.requires_grad for module in matched.values() for p in module.parameters()):
                raise mistake(f"'{text}' has no parameter that is trained")
        every = {p: None for matched in found for module in matched.values() for p in module.parameters()}
        self._parameters = [p for p in every if p.requires_grad]
        trained = [p for model in (student, state.extras) for p in model.parameters() if p.requires_grad]
        if {*map(id, trained)} <= {*map(id, self._parameters)}:
            raise mistake("nothing would be trained; leave some module of the student out")

    def step_start(self, state: State) -> None:
        """Freeze for this step."""
        if self._frozen(state.step, state.total_steps):
            self._turn(on=False)

    def step_end(self, state: State) -> None:
        """Thaw after the last step that is frozen; another of these callbacks freezes anew what it names too."""
        if self._frozen(state.step, state.total_steps) and not self._frozen(state.step + 1, state.total_steps):
            self._turn(on=True)

    def close(self, state: State) -> None:
        """All is trained that was before."""
        self._turn(on=True)
        self._parameters = []

    def _turn(self, *, on: bool) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(on)

    def _frozen(self, step: int, total: int) -> bool:
        begun = self._after is None or past(self._after, step, total)
        return begun and (self._until is None or not past(self._until, step, total))


def past(point: float, step: int, total: int) -> bool:
    """Whether a step, of `total` from 1 on, comes after a number of steps, or after a share of them that is a float."""
    return step > point if isinstance(point, int) else (step - 1) / total >= point


def mistake(message: str) -> ConfigError:
    """What is wrong with the options of a callback beside these parameters."""
    return ConfigError([Problem("callback 'freeze'", message)])
