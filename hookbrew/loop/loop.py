"""The loop: epochs, steps, rows, evaluations. What it fires, and in which order, is drawn in `events`.

It knows no loss: the objective gives named sums and counts, and weights over progress.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import attrs
import torch
from torch import nn

from hookbrew import words
from hookbrew.config import Train
from hookbrew.errors import CallbackError
from hookbrew.loop.accord import Accord
from hookbrew.loop.batch import Batch, moved
from hookbrew.loop.data import Feed, groups
from hookbrew.loop.device import compiled, threads
from hookbrew.loop.dispatch import Dispatch, reported
from hookbrew.loop.evaluation import evaluating
from hookbrew.loop.even import abreast
from hookbrew.loop.events import EVENTS
from hookbrew.loop.meter import Meter
from hookbrew.loop.mixture import Mixture
from hookbrew.loop.rate import Rate
from hookbrew.loop.row import require_finite, row
from hookbrew.loop.saving import Saver
from hookbrew.loop.state import State
from hookbrew.loop.step import Step, stepping
from hookbrew.loop.trainable import Trainable
from hookbrew.loop.update import Update, updating
from hookbrew.ranks import Ranks
from hookbrew.store import Checkpoint


@attrs.define(kw_only=True)
class Loop:
    """Everything a training needs, checked; `run` makes one."""

    objective: Trainable
    optimizer: torch.optim.Optimizer
    rate: Rate
    feed: Feed
    train: Train
    device: torch.device
    evaluate: Feed | None = None
    augment: Callable[[Batch, int, int], Batch]
    """(batch, step, position in the step) -> the augmented batch."""
    dispatch: Dispatch = attrs.field(factory=Dispatch)
    folder: Path | None = None
    compile: Sequence[nn.Module] = ()
    """Models whose forwards torch.compile speeds up."""
    ranks: Ranks = attrs.field(factory=Ranks)
    accord: Accord = attrs.field(init=False, factory=Accord)
    state: State = attrs.field(init=False)
    update: Update = attrs.field(init=False)
    meter: Meter = attrs.field(init=False)
    saver: Saver = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """The state before the first step."""
        per_epoch = math.ceil(len(self.feed) / self.train.accumulate) if self.train.steps is None else 0
        self.state = State(
            student=self.objective.student,
            teacher=self.objective.teacher,
            extras=self.objective.extras,
            device=self.device,
            total_steps=self.train.steps or per_epoch * (self.train.epochs or 1),
            total_epochs=None if self.train.steps else self.train.epochs or 1,
            folder=self.folder,
            several=isinstance(self.feed, Mixture),
            ranks=self.ranks,
            announce=self.announce,
        )
        self.update = updating(self.train, self.optimizer, self.dispatch, self.device)
        self.meter = Meter([t.name for t in self.objective.terms], self.device, skipping=self.update.skipping)
        self.saver = Saver(self)

    def announce(self, event: str) -> None:
        """Fire an event on behalf of a callback; raises CallbackError for one that does not exist."""
        if event not in EVENTS:
            raise CallbackError(f"there is no event {event!r} to announce; {words.hint(event, EVENTS)}")
        self.dispatch.fire(event, self.state)

    def run(self, resume: Checkpoint | None = None) -> State:
        """Train to the end, or to a requested stop, and return the last state.

        resume: where an earlier training was; this one goes on from there. Hooks, modes and threads are as before
        afterwards, also after an exception. Raises NonFiniteError for a step that is not finite, PreemptedError after
        a signal, and whatever callbacks raise.
        """
        dispatch, state = self.dispatch, self.state
        with ExitStack() as stack:
            stack.enter_context(threads(self.train.threads))
            stack.enter_context(self.objective.attached())
            stack.enter_context(compiled(self.compile))
            stack.enter_context(self.rate.lent())
            stack.callback(self.optimizer.zero_grad, set_to_none=True)
            with reported(dispatch, state):
                state.student.train()
                self.objective.extras.train()
                self.optimizer.zero_grad(set_to_none=True)
                if resume is not None:
                    self.saver.restore(resume)
                step, evaluate = stepping(self), evaluating(self)  # what is frozen later is wrapped by now
                stack.callback(step.replica.close)
                dispatch.fire("run_start", state)
                if resume is not None:
                    dispatch.fire("resumed", state)
                self.accord.settle(state)
                while state.batches or state.unfinished:
                    self.epoch(state, step, evaluate)
                    if state.batches:
                        break
                self.saver()
                dispatch.fire("run_end", state)
        return state

    def epoch(self, state: State, step: Step, evaluate: Callable[[State], None] | None) -> None:
        """One epoch, or what is left of it: of a run that goes on nothing may be left but its end."""
        if not state.batches:
            state.epoch += 1
            self.dispatch.fire("epoch_start", state)
        batches = groups(self.feed.epoch(state.epoch, state.batches), self.train.accumulate)
        for group in abreast(batches, self.feed, state.ranks):
            if not state.unfinished:
                break
            self.step(state, step, group)
            self.accord.settle(state)
            if evaluate is not None and self.due(state):
                evaluate(state)
                self.accord.settle(state)
            self.saver.asked()
            self.saver.heed()
        else:
            state.batches = 0
        if evaluate is not None and self.train.evaluate_every is None and state.last_eval_step != state.step:
            evaluate(state)
        self.dispatch.fire("epoch_end", state)
        self.accord.settle(state)
        self.saver.asked()

    def step(self, state: State, step: Step, group: list[Batch]) -> None:
        """One optimizer update and, if it is due, its row of metrics."""
        state.step += 1
        self.rate.set(state.progress)
        self.dispatch.fire("step_start", state)
        step(state, group)
        self.rate.advance()
        state.batches += len(group)
        self.dispatch.fire("step_end", state)
        if state.step in (1, state.total_steps) or state.step % self.train.log_every == 0:
            state.record = row(self)
            self.dispatch.fire("log", state)
            require_finite(state, self.update.skipping)
            state.record = {}

    def due(self, state: State) -> bool:
        """Whether to evaluate after this step."""
        every, last = self.train.evaluate_every, state.step == state.total_steps
        return self.accord.evaluate or (every is not None and (state.step % every == 0 or last))

    def prepared(self, state: State, batch: Batch, position: int) -> Batch:
        """The batch, augmented, on the device."""
        return moved(self.augment(batch, state.step, position), self.device)
