"""The short Python call: models, losses, `fit`. The command line goes through the same class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from hookbrew import factory, folder, plugin, words
from hookbrew.cache import Attending, Lessons, attended
from hookbrew.chance import kept_random
from hookbrew.config import (
    Cache,
    Component,
    Loss,
    Train,
    structure_cache,
    structure_component,
    structure_loss,
    structure_merge,
)
from hookbrew.earlier import earlier, held, kept, pace
from hookbrew.errors import ConfigError, Problem
from hookbrew.fitting import Fitting, lasting, require_read
from hookbrew.groups import adopt, default, owned
from hookbrew.loop import (
    SHARE,
    Batch,
    Chain,
    Dispatch,
    Feed,
    Given,
    Loop,
    Mixture,
    State,
    chosen,
    mix,
    moved,
    rated,
    require_even,
    require_same,
    size_of,
    split,
)
from hookbrew.modes import evaluating
from hookbrew.objective import TASK, Objective, Tasks, Teachers
from hookbrew.plugin import Catalogue
from hookbrew.progress import Schedule
from hookbrew.ranks import of, world
from hookbrew.request import Request, Task, alone, require_tasks


class Distillation:
    """A student, what it imitates, and the losses between them.

    Every selector is resolved here; sizes are measured on the first batch of `fit`. Raises ConfigError
    with all that is wrong. Without a teacher this is supervised training.
    """

    def __init__(
        self,
        teacher: Teachers,
        student: nn.Module,
        losses: Sequence[Request | Loss] = (),
        *,
        tasks: Mapping[str, Task] | None = None,
        augments: Sequence[Request | Component] = (),
        seed: int = 0,
        catalogue: Catalogue | None = None,
        **data: Any,
    ) -> None:
        """teacher: a model, several by name, or None.

        tasks: in place of teacher and losses, several by name; each batch is then of one.
        data: how a task reads its data: merge, fields, labels, mask, logits, causal, classes, aligned, index;
        see `hb.Task`.
        """
        self.student = student
        self._catalogue = catalogue or plugin.catalogue()
        require_tasks(tasks or {}, doubled=teacher is not None or bool(losses or data))
        self.tasks = dict(tasks or {"": alone(teacher, losses, data)})
        parts = {name: self._objective(name, task) for name, task in self.tasks.items()}
        self.objective: Objective | Tasks = parts[""] if "" in parts else Tasks(parts)
        self.teacher = self.objective.teacher
        self._augments = [self._built(item) for item in augments]
        self._seed = seed

    def _objective(self, name: str, task: Task) -> Objective:
        """The objective of one task."""
        at = f"tasks.{name}." if name else ""
        for index, item in enumerate(task.losses):
            if not isinstance(item, Loss | Request):
                raise ConfigError([Problem(f"{at}losses[{index}]", f"expected hb.loss(...), got {item!r}")])
        tables = [i if isinstance(i, Loss) else structure_loss(i.table, self._catalogue) for i in task.losses]
        losses = factory.projecting(tables, f"{at}losses")
        merge = structure_merge(task.merge, task.teacher if isinstance(task.teacher, Mapping) else (), at)
        return Objective(self.student, task.teacher, losses, task.names, merge=merge, at=at)

    def fit(
        self,
        loader: Iterable[Any] | Mapping[str, Iterable[Any]],
        *,
        epochs: int | None = None,
        steps: int | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        lr_schedule: Request | Schedule | LRScheduler | None = None,
        evaluate: Iterable[Any] | Mapping[str, Iterable[Any]] | None = None,
        callbacks: Sequence[Request | object] = (),
        output: str | Path | None = None,
        resume: bool = False,
        cache: str | Path | Mapping[str, Any] | None = None,
        **train: Any,
    ) -> State:
        """Train the student and return the last state; `state.metrics` holds the last evaluation.

        loader and evaluate give batches: mappings of names to tensors, or tuples named by `fields`; of several tasks
        they are mappings of the tasks' names to loaders.
        optimizer: AdamW with lr 5e-5 when left out; projections join the one that is given.
        output: a folder for callbacks that write; it must not exist.
        resume: go on from the newest checkpoint that the callback `checkpoint` made there; begin if there is none.
        cache: a folder, or the keys of `[cache]`: what the teachers say is kept there, and not computed again.
        train: the other keys of `[train]`: accumulate, clip_grad_norm, precision, log_every, ...
        The models are trained where they are, unless `device` is given.
        """
        fitting = Fitting(
            train=lasting(self.student, {"epochs": epochs, "steps": steps, **train}),
            optimizer=optimizer,
            rate=self._built(lr_schedule) if isinstance(lr_schedule, Request) else lr_schedule,
            evaluate=None if evaluate is None else self._evaluated(evaluate),
            callbacks=[self._attached(item) for item in callbacks],
            folder=None if output is None else Path(output),
        )
        stored = None if cache is None else structure_cache(cache)
        require_read(fitting, stored, self.tasks, augmented=bool(self._augments))
        place = kept(fitting.folder, callbacks) if resume else None
        if fitting.folder is not None and not resume:
            of(self.student).first(partial(folder.refuse, fitting.folder, overwrite=False))
        feed = self.mixed(self._feeds(loader, whole=True), fitting.train) if self._several else self._given(loader)
        _, fitting.lessons = self.measure(feed, fitting.train, stored)
        if fitting.evaluate is not None:
            self.rehearse(fitting.evaluate, fitting.train)
        loop = self.loop(feed, fitting)
        loop.saver.facts = pace(feed, fitting.train.accumulate)
        checkpoint = None if place is None else loop.ranks.first(lambda: earlier(place, feed, loop.saver.facts))
        with held(fitting.folder, loop.ranks, fresh=not resume):
            return loop.run(checkpoint)

    def loop(self, feed: Feed, fitting: Fitting) -> Loop:
        """The loop over a measured objective; what `fit` and the command line share.

        Raises CallbackError for a callback that cannot be attached, ConfigError for a teacher that nothing uses.
        """
        ranks = of(self.student)
        require_even(feed, ranks)
        self._require_use(fitting)
        optimizer = fitting.optimizer or default(self.student)
        adopt(optimizer, self.student, self.objective, fitting.rate)
        lessons = fitting.lessons
        attending = [] if lessons is None else [("cache", Attending(lessons))]
        return Loop(
            objective=self.objective,
            optimizer=optimizer,
            rate=rated(optimizer, fitting.rate),
            feed=feed,
            train=fitting.train,
            device=chosen(fitting.train.device),
            evaluate=fitting.evaluate,
            augment=self.augmented if lessons is None else lessons.supplied(self.augmented),
            dispatch=Dispatch([*attending, *fitting.callbacks]),
            folder=fitting.folder,
            ranks=ranks,
            compile=[model for side, model in self._sides() if fitting.train.compile in (side, "both")],
        )

    def augmented(self, batch: Batch, step: int, position: int) -> Batch:
        """The batch after every augment, by random numbers that depend on (seed, step, position) alone.

        position tells the batches of one step apart. Of several processes each has random numbers of its own.
        """
        if self._augments:
            other = [rank] if (rank := world().rank) else []
            generator = torch.Generator().manual_seed(mix(self._seed, "augment", step, position, *other))
            hidden = {SHARE, *([TASK] if self._several else [])} & batch.keys()
            kept, batch = {key: batch[key] for key in hidden}, {k: v for k, v in batch.items() if k not in hidden}
            for augment in self._augments:
                batch = augment(batch, generator)
            batch = {**batch, **kept}
        return batch

    def measure(
        self, feed: Feed, train: Train, cache: Cache | None = None, *, parts: int = 1
    ) -> tuple[list[Batch], Lessons | None]:
        """Bring the models to their device and measure sizes on the first batch, and what a cache is to keep.

        Returns that batch, or that of each task, and the teachers with their caches if there is a cache, in which
        nothing is written yet. parts: how many processes share each batch; as much of it is measured as each of them
        will get.
        """
        device = chosen(train.device)
        chunked = train.compile not in ("student", "both") and train.chunked
        if cache is not None and chunked == "auto":
            chunked = False  # what is kept may not depend on how large a batch is
        for _, model in self._sides():
            model.to(device)
        self.objective.extras.to(device)
        with kept_random(device), self.objective.attached():
            batches = feed.first()
            for batch in batches:
                part = next(split(batch, -(-size_of(batch) // parts)))
                self.objective.measure(moved(part, device), stop=train.stop_teacher, chunked=chunked)
        owned(self.objective)
        return batches, None if cache is None else attended(cache, self.objective, batches, train, parts=parts)

    def rehearse(self, evaluate: Feed, train: Train) -> list[Batch]:
        """Predict the first batch of the evaluation data, so that it does not fail after hours; returns it, or that of
        each task."""
        device = chosen(train.device)
        with kept_random(device), self.objective.attached(), evaluating(self.student), torch.no_grad():
            try:
                batches = [moved(batch, device) for batch in evaluate.first()]
                require_same(batches, of(self.student))
                for batch in batches:
                    self.objective.predict(batch)
            except Exception as error:
                error.add_note("raised by the first batch of the evaluation data")
                raise
        return batches

    def mixed(self, feeds: Mapping[str, Feed], train: Train) -> Feed:
        """The data of all tasks in one stream; that of the one task as it is."""
        if not self._several:
            return feeds[""]
        return Mixture(feeds, tau=1.0 if train.tau is None else train.tau, seed=self._seed)

    def _sides(self) -> Iterator[tuple[str, nn.Module]]:
        yield "student", self.student
        yield from (("teacher", teacher) for task in self.tasks.values() for teacher in task.models)

    def _require_use(self, fitting: Fitting) -> None:
        """Raise ConfigError for teachers that nothing uses: no loss, no callback that says so, nor `fitting.origin`."""
        idle = [problem for part in self.objective.parts.values() for problem in part.idle.values()]
        problems = [problem for problem in idle if problem.path != fitting.origin]
        if problems and not any(getattr(made, "teaches", False) for _, made in fitting.callbacks):
            raise ConfigError(problems)

    @property
    def _several(self) -> bool:
        return isinstance(self.objective, Tasks)

    def _given(self, loader: Any, task: str = "") -> Feed:
        return Given(loader, self.tasks[task].fields)

    def _evaluated(self, loader: Any) -> Feed:
        return Chain(self._feeds(loader, whole=False)) if self._several else self._given(loader)

    def _feeds(self, loaders: Any, *, whole: bool) -> dict[str, Feed]:
        """The user's loaders by task; raises ConfigError for one that is of no task; whole: or for a task without."""
        keys = loaders.keys() if isinstance(loaders, Mapping) else set()
        if not keys or not keys <= self.tasks.keys() or (whole and keys != self.tasks.keys()):
            what = words.several(loaders) if isinstance(loaders, Mapping) else f"a {type(loaders).__name__}"
            message = f"expected a mapping of tasks to loaders, of {words.several(self.tasks)}; got {what}"
            raise ConfigError([Problem("fit", message)])
        return {task: self._given(loaders[task], task) for task in self.tasks if task in loaders}

    def _built(self, item: Request | Component) -> Any:
        if isinstance(item, Request):
            item = structure_component(item.kind, item.table, self._catalogue)
        return item.options.build()

    def _attached(self, item: Request | object) -> tuple[str, object]:
        if isinstance(item, Request):
            return str(item.table["type"]), self._built(item)
        return type(item).__name__, item
