"""The short Python call: models, losses, `fit`. The command line goes through the same class."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from hookbrew import folder, plugin
from hookbrew.config import Component, Loss, Train, structure_component, structure_loss, structure_train
from hookbrew.errors import ConfigError, Problem
from hookbrew.loop import Batch, Dispatch, Feed, Given, Loop, State, chosen, mix, moved, rated
from hookbrew.modes import evaluating, kept_random
from hookbrew.objective import Names, Objective
from hookbrew.plugin import Catalogue
from hookbrew.progress import Schedule


@attrs.frozen
class Request:
    """A component by its registered name, not yet looked up."""

    kind: str
    table: Mapping[str, Any]


def loss(type: str, **table: Any) -> Request:
    """A `[[losses]]` table: student, teacher, projection, weight, mask, labels, name, and the loss's own options."""
    return Request("losses", {"type": type, **table})


def callback(type: str, **options: Any) -> Request:
    """A `[[callbacks]]` table."""
    return Request("callbacks", {"type": type, **options})


def augment(type: str, **options: Any) -> Request:
    """An `[[augments]]` table."""
    return Request("augments", {"type": type, **options})


def schedule(type: str, **options: Any) -> Request:
    """A schedule by name, for `fit(lr_schedule=...)`."""
    return Request("schedules", {"type": type, **options})


@attrs.define(kw_only=True)
class Fitting:
    """How `fit` trains: the keys of `[train]`, and what only Python can give."""

    train: Train
    optimizer: torch.optim.Optimizer | None = None
    rate: Schedule | LRScheduler | None = None
    evaluate: Feed | None = None
    callbacks: Sequence[tuple[str, object]] = ()
    folder: Path | None = None


class Distillation:
    """A student, what it imitates, and the losses between them.

    Every selector is resolved here; sizes are measured on the first batch of `fit`. Raises ConfigError
    with all that is wrong. Without a teacher this is supervised training.
    """

    def __init__(
        self,
        teacher: nn.Module | None,
        student: nn.Module,
        losses: Sequence[Request | Loss],
        *,
        augments: Sequence[Request | Component] = (),
        fields: Sequence[str] = (),
        labels: str = "labels",
        mask: str = "attention_mask",
        seed: int = 0,
        catalogue: Catalogue | None = None,
    ) -> None:
        """fields name the parts of batches that are tuples; labels and mask are keys of the batch."""
        self.student, self.teacher = student, teacher
        self._catalogue = catalogue or plugin.catalogue()
        for index, item in enumerate(losses):
            if not isinstance(item, Loss | Request):
                raise ConfigError([Problem(f"losses[{index}]", f"expected hb.loss(...), got {item!r}")])
        tables = [item if isinstance(item, Loss) else structure_loss(item.table, self._catalogue) for item in losses]
        self.objective = Objective(student, teacher, tables, Names(labels, mask))
        self._augments = [self._built(item) for item in augments]
        self._fields, self._seed = fields, seed

    def fit(
        self,
        loader: Iterable[Any],
        *,
        epochs: int | None = None,
        steps: int | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        lr_schedule: Request | Schedule | LRScheduler | None = None,
        evaluate: Iterable[Any] | None = None,
        callbacks: Sequence[Request | object] = (),
        output: str | Path | None = None,
        **train: Any,
    ) -> State:
        """Train the student and return the last state; `state.metrics` holds the last evaluation.

        loader and evaluate give batches: mappings of names to tensors, or tuples named by `fields`.
        optimizer: AdamW with lr 5e-5 when left out; projections join the one that is given.
        output: a folder for callbacks that write; it must not exist.
        train: the other keys of `[train]`: accumulate, clip_grad_norm, precision, log_every, ...
        The models are trained where they are, unless `device` is given.
        """
        if (epochs is None) == (steps is None):
            raise ConfigError([Problem("fit", "the length is missing, or given twice: write either epochs or steps")])
        here = next((str(p.device) for p in self.student.parameters()), "cpu")
        length = {"epochs": epochs} if steps is None else {"steps": steps}
        fitting = Fitting(
            train=structure_train({"device": here, **length, **train}),
            optimizer=optimizer,
            rate=self._built(lr_schedule) if isinstance(lr_schedule, Request) else lr_schedule,
            evaluate=None if evaluate is None else Given(evaluate, self._fields),
            callbacks=[self._attached(item) for item in callbacks],
            folder=None if output is None else Path(output),
        )
        require_evaluation(fitting)
        if fitting.folder is not None:
            folder.refuse(fitting.folder, overwrite=False)
        feed = Given(loader, self._fields)
        self.measure(feed, fitting.train)
        if fitting.evaluate is not None:
            self.rehearse(fitting.evaluate, fitting.train)
        loop = self.loop(feed, fitting)
        if fitting.folder is not None:
            folder.create(fitting.folder, overwrite=False)
        return loop.run()

    def loop(self, feed: Feed, fitting: Fitting) -> Loop:
        """The loop over a measured objective; what `fit` and the command line share.

        Raises CallbackError for a callback that cannot be attached.
        """
        optimizer = fitting.optimizer or default(self.student)
        self.adopt(optimizer)
        return Loop(
            objective=self.objective,
            optimizer=optimizer,
            rate=rated(optimizer, fitting.rate),
            feed=feed,
            train=fitting.train,
            device=chosen(fitting.train.device),
            evaluate=fitting.evaluate,
            augment=self.augmented,
            dispatch=Dispatch(fitting.callbacks),
            folder=fitting.folder,
        )

    def augmented(self, batch: Batch, step: int, position: int) -> Batch:
        """The batch after every augment, by random numbers that depend on (seed, step, position) alone.

        position tells the batches of one step apart.
        """
        if self._augments:
            generator = torch.Generator().manual_seed(mix(self._seed, "augment", step, position))
            for augment in self._augments:
                batch = augment(batch, generator)
        return batch

    def measure(self, feed: Feed, train: Train) -> None:
        """Bring the models to their device and measure sizes on the first batch."""
        device = chosen(train.device)
        for model in (self.student, self.teacher):
            if model is not None:
                model.to(device)
        self.objective.extras.to(device)
        with kept_random(device), self.objective.attached():
            self.objective.measure(moved(next(iter(feed.epoch(1))), device), stop=train.stop_teacher)

    def rehearse(self, evaluate: Feed, train: Train) -> Batch:
        """Predict the first batch of the evaluation data, so that it does not fail after hours; returns the batch."""
        device = chosen(train.device)
        with kept_random(device), self.objective.attached(), evaluating(self.student), torch.no_grad():
            try:
                batch = moved(next(iter(evaluate.epoch(1))), device)
                self.objective.predict(batch)
            except Exception as error:
                error.add_note("raised by the first batch of the evaluation data")
                raise
        return batch

    def adopt(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the optimizer train projections and learnable losses too, in its first group.

        A group of their own would be one more than a scheduler of torch has counted. Raises ConfigError for an
        optimizer that cannot train the student.
        """
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            name = type(optimizer).__name__
            raise ConfigError([Problem("optimizer", f"{name} computes the loss several times a step; take another")])
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if known.isdisjoint(map(id, self.student.parameters())):
            raise ConfigError(
                [Problem("optimizer", "it holds no parameter of the student, which would not be trained")]
            )
        first = optimizer.param_groups[0]
        for name, parameter in self.objective.extras.named_parameters():
            if id(parameter) not in known:
                first["params"].append(parameter)
                if "param_names" in first:
                    first["param_names"].append(f"extras.{name}")

    def _built(self, item: Request | Component) -> Any:
        if isinstance(item, Request):
            item = structure_component(item.kind, item.table, self._catalogue)
        return item.options.build()

    def _attached(self, item: Request | object) -> tuple[str, object]:
        if isinstance(item, Request):
            return str(item.table["type"]), self._built(item)
        return type(item).__name__, item


def require_evaluation(fitting: Fitting) -> None:
    """Raise ConfigError for what is said about evaluating when there is nothing to evaluate on."""
    if fitting.evaluate is None:
        given = {
            "evaluate_every": fitting.train.evaluate_every is not None,
            "callback 'evaluate'": "evaluate" in [name for name, _ in fitting.callbacks],
        }
        problems = [
            Problem(what, "there is no evaluation data: give it with evaluate=", "fit") for what in given if given[what]
        ]
        if problems:
            raise ConfigError(problems)


def default(student: nn.Module) -> torch.optim.Optimizer:
    """AdamW with lr 5e-5; fused, so that on a GPU a step that is not finite is skipped without asking the device."""
    parameters = list(student.parameters())
    return torch.optim.AdamW(parameters, 5e-5, fused=parameters[0].device.type in ("cpu", "cuda"))
