"""The loop: epochs, steps, rows, evaluations. What it fires, and in which order, is drawn in `events`.

It knows no loss: the objective gives named sums and counts, and weights over progress.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import attrs
import torch

from hookbrew import words
from hookbrew.config import Train
from hookbrew.errors import CallbackError, NonFiniteError
from hookbrew.loop.batch import Batch, moved
from hookbrew.loop.data import Feed, groups
from hookbrew.loop.device import autocast, threads
from hookbrew.loop.dispatch import Dispatch
from hookbrew.loop.evaluation import Evaluation
from hookbrew.loop.events import EVENTS
from hookbrew.loop.meter import Meter
from hookbrew.loop.mixture import Mixture
from hookbrew.loop.rate import Rate
from hookbrew.loop.state import State
from hookbrew.loop.step import Step, Trainable


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
    state: State = attrs.field(init=False)

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
            announce=self.announce,
        )

    def announce(self, event: str) -> None:
        """Fire an event on behalf of a callback; raises CallbackError for one that does not exist."""
        if event not in EVENTS:
            raise CallbackError(f"there is no event {event!r} to announce; {words.hint(event, EVENTS)}")
        self.dispatch.fire(event, self.state)

    def run(self) -> State:
        """Train to the end, or to a requested stop, and return the last state.

        Hooks, modes and threads are as before afterwards, also after an exception. Raises NonFiniteError
        for a step that is not finite, and whatever callbacks raise.
        """
        dispatch, state = self.dispatch, self.state
        with ExitStack() as stack:
            stack.enter_context(threads(self.train.threads))
            stack.enter_context(self.objective.attached())
            stack.enter_context(self.rate.lent())
            stack.callback(self.optimizer.zero_grad, set_to_none=True)
            with reported(dispatch, state):
                state.student.train()
                self.optimizer.zero_grad(set_to_none=True)
                dispatch.fire("run_start", state)
                self.epochs(state, dispatch)
                dispatch.fire("run_end", state)
        return state

    def epochs(self, state: State, dispatch: Dispatch) -> None:
        """All epochs, each in its own order."""
        precise = partial(autocast, self.train.precision, self.device)
        step = Step(
            objective=self.objective,
            optimizer=self.optimizer,
            dispatch=dispatch,
            meter=Meter([term.name for term in self.objective.terms], self.device),
            prepare=self.prepare,
            autocast=precise,
            clip=self.train.clip_grad_norm,
        )
        evaluation = None
        if self.evaluate is not None:
            evaluation = Evaluation(objective=self.objective, feed=self.evaluate, dispatch=dispatch, autocast=precise)
        while state.step < state.total_steps and not state.stop_reason:
            state.epoch += 1
            dispatch.fire("epoch_start", state)
            for group in groups(self.feed.epoch(state.epoch), self.train.accumulate):
                self.step(state, step, group)
                if evaluation is not None and self.due(state):
                    evaluation(state)
                if state.stop_reason or state.step == state.total_steps:
                    break
            if evaluation is not None and self.train.evaluate_every is None and state.last_eval_step != state.step:
                evaluation(state)
            dispatch.fire("epoch_end", state)

    def step(self, state: State, step: Step, group: list[Batch]) -> None:
        """One optimizer update and, if it is due, its row of metrics."""
        state.step += 1
        self.rate.set(state.progress)
        step.dispatch.fire("step_start", state)
        step(state, group)
        self.rate.advance()
        step.dispatch.fire("step_end", state)
        if state.step in (1, state.total_steps) or state.step % self.train.log_every == 0:
            state.record = self.record(state, step.meter)
            step.dispatch.fire("log", state)
            if not math.isfinite(state.record["loss"] + state.record["grad_norm"]):
                raise NonFiniteError(f"a loss or gradient was not finite in the steps up to {state.step}")
            state.record = {}

    def record(self, state: State, meter: Meter) -> dict[str, float]:
        """The row of metrics: means since the last row, and the numbers in force."""
        weights = zip(self.objective.terms, self.objective.weights(state.progress), strict=True)
        return {
            "step": state.step,
            "epoch": state.epoch,
            **meter.row(),
            **{f"weight/{term.name}": weight for term, weight in weights},
            **self.objective.varying(state.progress),
            "lr": float(self.rate.current),
            **{name: float(rate) for name, rate in self.rate.own.items()},
        }

    def due(self, state: State) -> bool:
        """Whether to evaluate after this step."""
        every = self.train.evaluate_every
        return state.eval_requested or (
            every is not None and (state.step % every == 0 or state.step == state.total_steps)
        )

    def prepare(self, state: State, batch: Batch, position: int) -> Batch:
        """The batch, augmented, on the device."""
        return moved(self.augment(batch, state.step, position), self.device)


@contextmanager
def reported(dispatch: Dispatch, state: State) -> Iterator[None]:
    """`run_abort` after any exception, Ctrl-C included; `close` always, last."""
    try:
        yield
    except BaseException as error:
        state.exception = error
        dispatch.finish("run_abort", state)
        raise
    finally:
        dispatch.finish("close", state)
