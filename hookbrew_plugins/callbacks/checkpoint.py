"""Checkpoints: all of a training between two steps, from which `hookbrew resume` goes on."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import attrs
from attrs.validators import ge, optional

from hookbrew.errors import CallbackError
from hookbrew.loop import State, Store
from hookbrew.plugin import at_least, choice, options
from hookbrew_plugins.callbacks.goal import Goal, Top
from hookbrew_plugins.callbacks.inside import inside

log = logging.getLogger("hookbrew")


@options
class Checkpoint:
    """Keeps the whole training between two steps: student, projections, optimizer, random states, what callbacks know.

    Every run of the command line has it. A signal, and the end of the training, make one besides, and with keep_best
    each evaluation that is among the best so far.
    """

    every: int | None = attrs.field(default=None, validator=optional(ge(1)))
    """Steps between two checkpoints."""
    epochs: int | None = attrs.field(default=None, validator=optional(ge(1)))
    """Epochs between two checkpoints; 1 when none of the three is given."""
    per_epoch: int | None = attrs.field(default=None, validator=optional(ge(1)))
    """Checkpoints in each epoch, evenly apart."""
    keep_last: int = at_least(2, 2)
    """How many of the newest stay, 2 at least: one may be damaged. Older ones go when a newer one stands."""
    keep_best: int | None = attrs.field(default=None, validator=optional(ge(1)))
    """How many of the best evaluations have a checkpoint that stays, besides the newest; none when left out."""
    metric: str | None = None
    """What keep_best goes by, a name in the results of an evaluation: accuracy when left out; trec/accuracy."""
    goal: str | None = choice("highest", "lowest", default=None)
    """Where that metric is best; known by name for those that the callback evaluate counts."""
    keep_every: int | None = attrs.field(default=None, validator=optional(ge(1)))
    """Checkpoints of steps that are multiples of this stay for ever."""
    folder: str = attrs.field(default="checkpoints", validator=inside)
    """Where, in the run folder: one folder a checkpoint, `step-00000120`."""

    def __attrs_post_init__(self) -> None:
        """Raise ValueError for a metric that nothing goes by, or of which nobody says where it is best."""
        for name in ("metric", "goal"):
            if self.keep_best is None and getattr(self, name) is not None:
                raise ValueError(f"'{name}' says what keep_best goes by; write how many stay, as in keep_best = 1")
        self._top()

    def build(self) -> Keeper:
        """The callback."""
        return Keeper(self, self._top())

    def _top(self) -> Top:
        return Top(Goal(metric=self.metric or "accuracy", goal=self.goal), self.keep_best or 0)


@attrs.define(eq=False)
class Keeper:
    """Says where checkpoints go and which stay, and asks for them; the loop makes them, at the boundary of a step."""

    priority: ClassVar[int] = 100

    _options: Checkpoint
    _top: Top
    """The evaluations whose checkpoints stay, and stand."""
    _next: tuple[int, float] | None = None
    """The step and the value of an evaluation that is among the best, until its checkpoint stands."""
    _stands: int | None = None
    """The step of the last checkpoint that stands."""

    def run_start(self, state: State) -> None:
        """Find out now whether there is a place to write to; of a run that goes on, what stays still stays."""
        folder = state.require_folder("checkpoint") / self._options.folder
        if self._options.per_epoch is not None and state.total_epochs is None:
            raise CallbackError("callback 'checkpoint': per_epoch needs train.epochs; of train.steps there is `every`")
        state.store = Store(folder, keep_last=self._options.keep_last, keep_every=self._options.keep_every)
        if state.ranks.main:
            state.store.clean()
        there = {*state.store.steps()}
        self._top.values = {step: value for step, value in self._top.values.items() if step in there}
        state.kept |= self._top.values.keys()

    def resumed(self, state: State) -> None:
        """The checkpoint of this step is there."""
        self._stands = state.step

    def step_end(self, state: State) -> None:
        """A checkpoint every so many steps."""
        every, parts = self._options.every, self._options.per_epoch
        if every is not None and state.step % every == 0:
            state.request_save()
        if parts is not None and state.total_epochs is not None:
            steps = state.total_steps // state.total_epochs
            there = state.step - (state.epoch - 1) * steps
            if there * parts // steps > (there - 1) * parts // steps:
                state.request_save()

    def eval_end(self, state: State) -> None:
        """A checkpoint of each evaluation that is among the best."""
        if not self._top.most:
            return
        value = self._top.goal.found(state, "checkpoint")
        if self._top.takes(value):
            self._next = state.step, value
            state.request_save()
            if self._stands == state.step:  # made before the evaluation; the loop makes no second one of a step
                self._keep(state)

    def epoch_end(self, state: State) -> None:
        """A checkpoint every so many epochs."""
        alone = self._options.every is None and self._options.per_epoch is None
        every = self._options.epochs or (1 if alone else None)
        if every is not None and state.epoch % every == 0:
            state.request_save()
        if self._top.most and state.last_eval_step is None and state.epoch == 1:
            log.warning("callback 'checkpoint': keep_best goes by evaluations, and there was none in epoch 1")

    def checkpoint_saved(self, state: State) -> None:
        """What was better before may go now, and not sooner."""
        self._stands = state.step
        self._keep(state)

    def checkpoint_failed(self, state: State) -> None:
        """What was better before stays."""
        self._next = None

    def state_dict(self) -> dict[str, Any]:
        """What keep_best goes by, and the best evaluations, with that of the checkpoint that is being made."""
        top = attrs.evolve(self._top)
        if self._next is not None:
            top.add(*self._next)
        return {"by": str(top.goal), "best": [[step, value] for step, value in top.values.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there, if it goes by the same."""
        by = str(self._top.goal)
        if self._top.most and state["best"] and state["by"] != by:
            told = "callback 'checkpoint': keep_best went by %s, and goes by %s now; what it kept counts no more"
            log.warning(told, state["by"], by)
        elif self._top.most:
            for step, value in state["best"]:
                self._top.add(step, value)

    def _keep(self, state: State) -> None:
        """Let the checkpoint of the last evaluation stay, and another one go in its place."""
        last, self._next = self._next, None
        if last is not None and last[0] == state.step and state.store is not None:
            state.kept -= self._top.values.keys()
            self._top.add(*last)
            state.kept |= self._top.values.keys()
            state.store.prune(state.kept, state.step)
