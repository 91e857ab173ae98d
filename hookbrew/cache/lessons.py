"""The teachers of a run with their caches: made out of `[cache]`, open while the run trains."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from hookbrew import words
from hookbrew.cache.fingerprint import differing, fingerprint
from hookbrew.cache.head import heading
from hookbrew.cache.lesson import Lesson
from hookbrew.cache.serve import fitting
from hookbrew.config import Cache, Train
from hookbrew.errors import CacheError, ConfigError, Problem
from hookbrew.loop import Batch, State, autocast, chosen, moved, size_of, split
from hookbrew.modes import evaluating
from hookbrew.objective import TASK, Objective, Seat, Tasks, seats
from hookbrew.ranks import Ranks

log = logging.getLogger("hookbrew")
Augment = Callable[[Batch, int, int], Batch]
CLOSE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""How far what a teacher says of an example may depend on the batch that it is in, relative to the largest number; 5e-2
where it computes in less."""


@attrs.define(eq=False)
class Lessons:
    """All teachers that losses compare with, by task and name."""

    config: Cache
    objective: Objective | Tasks
    lessons: Mapping[str, Mapping[str, Lesson]]

    @property
    def every(self) -> list[Lesson]:
        """All of them."""
        return [lesson for own in self.lessons.values() for lesson in own.values()]

    def open(self, ranks: Ranks) -> None:
        """Answer for the teachers from now on; raises CacheError for a cache of something else."""
        for lesson in self.every:
            ranks.first(lesson.make)
            lesson.open()
        for task, part in self.objective.parts.items():
            part.ask = partial(asked, self.lessons[task])

    def refresh(self) -> None:
        """Look for what was added since."""
        for lesson in self.every:
            lesson.refresh()

    def close(self) -> None:
        """Let the teachers answer themselves again; raises CacheError for what could not be written."""
        for part in self.objective.parts.values():
            part.ask = None
        for lesson in self.every:
            lesson.close()

    def own(self, batch: Mapping[str, Any]) -> Mapping[str, Lesson]:
        """The teachers of the task that a batch is of."""
        return self.lessons[batch[TASK] if isinstance(self.objective, Tasks) else ""]

    def supplied(self, augment: Augment) -> Augment:
        """A batch, augmented as before, with what is kept of it: it is read before it goes to the device."""

        def made(batch: Batch, step: int, position: int) -> Batch:
            batch = augment(batch, step, position)
            found = [lesson.supply(batch) for lesson in self.own(batch).values()]
            return {key: value for part in (batch, *found) for key, value in part.items()}

        return made

    def require_apart(self, earlier: Iterable[Lessons]) -> None:
        """Raise ConfigError where an earlier stage keeps something else in a folder of these."""
        theirs = {lesson.folder: lesson.fingerprint.facts() for lessons in earlier for lesson in lessons.every}
        for lesson in self.every:
            now = lesson.fingerprint.facts()
            if parts := [*differing(theirs.get(lesson.folder, now), now)]:
                message = f"an earlier stage keeps something else in {lesson.folder}: {words.several(parts)}"
                raise ConfigError([Problem("cache.folder", f"{message}; name another folder")])

    def __str__(self) -> str:
        return "\n".join(f"cache of {lesson.seat.at}: {lesson}" for lesson in self.every)


def asked(lessons: Mapping[str, Lesson], name: str, batch: Mapping[str, Any]) -> Any:
    """What a teacher returned for a batch; None where it was not run."""
    return lessons[name].ask(batch)


@attrs.define(eq=False)
class Attending:
    """The callback that opens the caches when a run begins, and closes them when it is over."""

    priority: ClassVar[int] = -200

    _lessons: Lessons
    _added: list[int] = attrs.field(factory=list, init=False)
    """How many examples each epoch added."""

    def run_start(self, state: State) -> None:
        """Open them."""
        self._lessons.open(state.ranks)

    def epoch_start(self, state: State) -> None:
        """See what the last epoch added; as many as the first are a sign of data that is drawn anew."""
        self._lessons.refresh()
        fresh = sum(lesson.fresh for lesson in self._lessons.every)
        self._added.append(fresh - sum(self._added))
        anew = len(self._added) == 3 and self._added[2] >= self._added[1] > 0
        if anew and state.ranks.main and not self._lessons.config.augmented:
            log.warning(
                "the second epoch added %d examples to the cache, as many as the first: the data seems to draw "
                "them anew each time, and the cache grows by each epoch",
                self._added[2],
            )

    def run_end(self, state: State) -> None:
        """Write down what was added."""
        self._lessons.close()

    def close(self, state: State) -> None:
        """Close them, also after an error."""
        self._lessons.close()


def attended(
    config: Cache,
    objective: Objective | Tasks,
    first: Sequence[Batch],
    train: Train,
    *,
    parts: int = 1,
) -> Lessons:
    """The teachers of a measured objective, with what the losses read of them in the first batch, or that of each task.

    parts: how many processes share each batch; as much of it is looked at as each of them will get. Nothing is written.
    Raises ConfigError for what cannot be kept, CacheError for a cache of something else.
    """
    found, device = dict[str, dict[str, Lesson]](), chosen(train.device)
    with objective.attached():
        for whole in first:
            batch = moved(next(split(whole, -(-size_of(whole) // parts))), device)
            task = batch[TASK] if isinstance(objective, Tasks) else ""
            own = seats(objective.parts[task])
            with evaluating(*(seat.model for seat in own.values())), autocast(train.precision, device):
                found[task] = {name: learned(config, seat, batch, device) for name, seat in own.items()}
    if not any(found.values()):
        raise ConfigError([Problem("cache", "no loss compares with a teacher, so there is nothing to keep")])
    lessons = Lessons(config, objective, found)
    for lesson in lessons.every:
        if not lesson.there and config.missing == "refuse":
            message = f"there is no cache in {lesson.folder}; build it with `hookbrew cache build`"
            raise ConfigError([Problem("cache.folder", message)])
    return lessons


def learned(config: Cache, seat: Seat, batch: Batch, device: torch.device) -> Lesson:
    """One teacher, after a look at what it says of a batch."""
    with heading(seat.model) as head:
        seen = looked(seat, batch)
    kind = fitting(config, seat, seen, seat.inputs(batch), head)
    require_alone(seat, batch, seen)
    told: dict[str, Any] = {"hidden": head.get("input"), "logits": next(iter(seen.values())), **seen}
    try:
        kind.encode(told)
    except CacheError as error:
        raise ConfigError([Problem("cache", str(error))]) from error
    fast = torch.is_autocast_enabled(device.type)
    precision = str(torch.get_autocast_dtype(device.type)).removeprefix("torch.") if fast else "fp32"
    return Lesson(
        seat=seat,
        folder=config.folder if seat.at == "teacher" else config.folder / seat.at,  # the only one has no name
        kind=kind,
        fingerprint=fingerprint(seat.model, kind.facts(), [*seen], tokenizer=config.tokenizer, precision=precision),
        dtypes={name: tensor.dtype for name, tensor in seen.items()},
        refuse=config.missing == "refuse",
    )


def looked(seat: Seat, batch: Batch) -> dict[str, Tensor]:
    """What the losses read of a teacher's forward."""
    with torch.no_grad():
        seat.run(batch)
        return {name: tensor.detach() for name, tensor in seat.seen().items()}


def require_alone(seat: Seat, batch: Batch, whole: Mapping[str, Tensor]) -> None:
    """Raise ConfigError for a teacher whose word on an example depends on the others of its batch."""
    part = looked(seat, next(split(batch, -(-size_of(batch) // 2))))
    for name, tensor in whole.items():
        expected, got = tensor[: len(part[name])].float(), part[name].float()
        if expected.shape != got.shape:
            continue
        apart = (expected - got).abs().nan_to_num(posinf=0).max() if got.numel() else 0
        if float(apart) > CLOSE.get(tensor.dtype, 5e-2) * max(float(expected.nan_to_num(neginf=0).abs().max()), 1e-6):
            message = (
                f"what {seat.at} says of an example depends on the others of its batch, by {float(apart):.2g} in "
                f"{name}; it cannot be kept for each"
            )
            raise ConfigError([Problem("cache", message)])
