"""The average of a student's weights over its training, which often generalises better than the last of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import attrs
import torch
from attrs.validators import and_, ge, lt
from torch import Tensor, nn

from hookbrew.errors import CallbackError
from hookbrew.loop import State, spread
from hookbrew.plugin import options
from hookbrew.taps import resharded, unwrap

LENT = "evaluations and the end see the average in place of the student's own weights"


@options
class EMA:
    """Averages the student's parameters over the steps, and leaves the average as the student when the run is complete.

    average = decay * average + (1 - decay) * parameter after each step whose gradient is finite (Polyak and Juditsky
    1992), in fp32 where parameters are bf16 or fp16. Buffers, as the statistics of batch norm, stay the student's own.

    The average stands in the student from eval_start until the next step or the end of the epoch, and from the end of
    the last epoch on: `evaluate` and `best` see it, and `weights` writes it, in whatever order callbacks stand.
    Checkpoints have the student's own weights, and the average as the state of this callback. A callback that changes
    weights between two steps comes after this one, or what it does is undone. After an abort the student has its own.
    """

    exempt: ClassVar[dict[str, str]] = {"weights_untouched": LENT, "state_untouched": LENT}

    decay: float = attrs.field(default=0.999, validator=and_(ge(0), lt(1)))
    """How much of the average stays at each step: 0.999 is the average of about the last 1000."""
    warmup: bool = True
    """Begin with less: min(decay, (1 + n) / (10 + n)) at step n, so that the first weights are soon forgotten."""
    evaluate: bool = True
    """Whether evaluations are of the average; else of the student's own weights."""

    def build(self) -> Average:
        """The callback."""
        return Average(self.decay, self.warmup, self.evaluate)


@attrs.define(eq=False)
class Average:
    """Lives on the student's device, and asks nothing of it: no step waits for another."""

    _decay: float
    _warmup: bool
    _evaluate: bool
    _student: nn.Module | None = None
    _parameters: dict[str, nn.Parameter] = attrs.field(factory=dict)
    """By name, those that several modules share once."""
    _average: dict[str, Tensor] = attrs.field(factory=dict)
    _loaded: bool = False
    """Whether the average is that of a run that is resumed."""
    _own: list[Tensor] | None = None
    """The student's own weights while the average is in their place."""
    _saving: bool = False
    """Whether the average is to be put back when a checkpoint is written."""

    def run_start(self, state: State) -> None:
        """Begin with the student as it is, or where a resumed run was; raises CallbackError for another's average."""
        self._student = unwrap(state.student)
        resharded(self._student)  # what FSDP2 has gathered is not what the optimizer moves
        named = self._student.named_parameters()
        self._parameters = {name: p for name, p in named if p.is_floating_point() or p.is_complex()}
        source: Mapping[str, Tensor] = self._average if self._loaded else self._parameters
        require_same(source, self._parameters)
        self._average = {
            name: spread(source[name].detach(), p).to(p.device, torch.promote_types(p.dtype, torch.float32), copy=True)
            for name, p in self._parameters.items()
        }
        self._loaded = False
        if not state.batches and not state.unfinished:
            self._lay()  # a run that goes on, of which only the end is left: no epoch_end comes

    def step_start(self, state: State) -> None:
        """The training goes on from the student's own weights."""
        self._lift()

    def optimizer_end(self, state: State) -> None:
        """Move the average, unless the update was skipped for a gradient that is not finite."""
        assert state.grad_norm is not None
        decay = min(self._decay, (1 + state.step) / (10 + state.step)) if self._warmup else self._decay
        average = list(self._average.values())
        with torch.no_grad():
            # a lerp in three parts: its weight is a tensor, for only the device knows whether the update was skipped;
            # the gradients are freed by now, so that the difference takes their place in memory
            gap = torch._foreach_sub(list(self._parameters.values()), average)
            torch._foreach_mul_(gap, torch.isfinite(state.grad_norm) * (1 - decay))
            torch._foreach_add_(average, gap)

    def eval_start(self, state: State) -> None:
        """Evaluate the average."""
        if self._evaluate:
            self._lay()

    def epoch_end(self, state: State) -> None:
        """After the last epoch the average stays, so that it is there before run_end comes to anyone."""
        if state.stop_reason or state.step == state.total_steps:
            self._lay()
        else:
            self._lift()

    def checkpoint_saving(self, state: State) -> None:
        """A checkpoint is of the student's own weights."""
        self._saving = self._own is not None
        self._lift()

    def checkpoint_saved(self, state: State) -> None:
        """As before it."""
        if self._saving:
            self._lay()

    def checkpoint_failed(self, state: State) -> None:
        """As before it."""
        self.checkpoint_saved(state)

    def run_end(self, state: State) -> None:
        """The student is the average from now on."""
        self._lay()
        self._own = None

    def run_abort(self, state: State) -> None:
        """Leave the student with its own weights."""
        self._lift()

    def close(self, state: State) -> None:
        """Let the student go."""
        self._student, self._parameters = None, {}

    def state_dict(self) -> dict[str, Any]:
        """The average by the names of the parameters."""
        return {"average": dict(self._average)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from an average, when the run starts."""
        self._average, self._loaded = dict(state["average"]), True

    def _lay(self) -> None:
        """Put the average into the student."""
        if self._own is None:
            self._own = [p.detach().clone() for p in self._parameters.values()]  # kept first: an interrupt may come
            self._write(self._average.values())

    def _lift(self) -> None:
        """Put the student's own weights back."""
        if self._own is not None:
            self._write(self._own)
            self._own = None

    def _write(self, values: Iterable[Tensor]) -> None:
        assert self._student is not None
        resharded(self._student)  # the next forward would see what FSDP2 gathered for the last one
        with torch.no_grad():
            for parameter, value in zip(self._parameters.values(), values, strict=True):
                parameter.copy_(value)


def require_same(average: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    """Raise CallbackError unless an average is of these parameters, by names and shapes."""
    one, other = ({name: tuple(t.shape) for name, t in tensors.items()} for tensors in (average, parameters))
    if one != other:
        name = next(name for name in one | other if one.get(name) != other.get(name))
        raise CallbackError(
            f"callback 'ema': the average is of another student: {name!r} is {one.get(name, 'not there')} in it, "
            f"and {other.get(name, 'not there')} in the student"
        )
