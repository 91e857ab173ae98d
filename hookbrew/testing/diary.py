"""A tiny training, written down event by event: with a callback and without it, both read the same."""

from __future__ import annotations

import logging
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from hookbrew.config import Loss
from hookbrew.distillation import Distillation
from hookbrew.loop import EVENTS, State
from hookbrew.plugin import catalogue, options
from hookbrew.testing.facts import PASSING, Facts, copied, fields, hooks, modes, randomness, tensors

END = "the end"
BATCHES, ROWS, WIDTH, CLASSES = 5, 4, 3, 2


@attrs.frozen
class Entry:
    """What was there when an event was over for all callbacks before."""

    event: str
    step: int
    again: int
    """How often this event had come at this step."""
    weights: Facts
    """Parameters, buffers and gradients of the models, and the batch."""
    random: Facts
    models: Facts
    """Which models they are, and modes and requires_grad of their parts; hooks when all is over."""
    state: Facts

    @property
    def key(self) -> tuple[str, int, int]:
        """What it is an entry of."""
        return self.event, self.step, self.again

    def __str__(self) -> str:
        return self.event if self.event == END else f"{self.event} of step {self.step}"


@attrs.define
class Diary:
    """The entries of one training, and the files it left outside its folder."""

    student: nn.Module
    teacher: nn.Module
    stopped: str | None = None
    entries: list[Entry] = attrs.field(factory=list)
    outside: list[str] = attrs.field(factory=list)
    failures: list[str] = attrs.field(factory=list)
    """What callbacks raised while a run that failed was ending."""
    degraded: list[dict[str, Any]] = attrs.field(factory=list)
    """Optional callbacks that raised, and were disabled."""
    _seen: Counter[tuple[str, int]] = attrs.field(factory=Counter)

    def note(self, event: str, state: State) -> None:
        """Write down what is there now."""
        place = event, state.step
        self.degraded = state.degraded
        models = {"student": self.student, "teacher": self.teacher}
        batch = {f"batch[{name!r}]": tensor for name, tensor in state.batch.items() if event in PASSING["batch"]}
        same = {f"state.{name} is the {name}": getattr(state, name) is model for name, model in models.items()}
        entry = Entry(
            event,
            state.step,
            self._seen[place],
            weights=copied({**tensors(models), **batch}),
            random=randomness(),
            models=same | modes(models) | (hooks(models) if event == END else {}),
            state=fields(event, state),
        )
        self._seen[place] += 1
        self.entries.append(entry)

    def witness(self) -> object:
        """A callback that writes down every event."""

        def noting(event: str) -> Callable[[object, State], None]:
            def note(self: object, state: State) -> None:
                diary.note(event, state)

            return note

        diary = self
        return type("Witness", (), {event: noting(event) for event in EVENTS})()


def kept(make: Callable[[], object] | None, *, broken: bool = False) -> Diary:
    """The diary of a training with the callback that `make` gives, or without any; the same seeds each time.

    broken: let the data fail in the middle. Prints nothing; raises AssertionError if the callback raises.
    """
    with seeded(), tempfile.TemporaryDirectory() as made, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        root = Path(made).resolve()
        (root / "elsewhere").mkdir()
        torch.manual_seed(0)
        student = nn.Sequential(nn.Linear(WIDTH, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, CLASSES))
        diary = Diary(student, nn.Sequential(nn.Linear(WIDTH, 4), nn.Tanh(), nn.Linear(4, CLASSES)))
        with chdir(root / "elsewhere"), listened(diary.failures):
            train(diary, [] if make is None else [make()], root / "run", broken=broken)
        diary.outside = sorted(
            str(path.relative_to(root))
            for path in root.rglob("*")
            if not path.is_relative_to(root / "run") and path != root / "elsewhere"
        )
    return diary


def train(diary: Diary, callbacks: list[object], folder: Path, *, broken: bool) -> None:
    """Two epochs of five batches, two to a step, with an evaluation at the end of each, which gives an accuracy."""
    losses = [Loss(type="squares", options=Squares())]
    run = Distillation(diary.teacher, diary.student, losses, catalogue=catalogue(discover=False))
    try:
        state = run.fit(
            Data(broken=broken),
            epochs=2,
            accumulate=2,
            log_every=1,
            optimizer=torch.optim.SGD(diary.student.parameters(), 0.1, momentum=0.9),
            evaluate=Data(shuffled=False),
            callbacks=[Grade(), *callbacks, diary.witness()],
            output=folder,
        )
    except Broken:
        diary.failures += map(disabled, diary.degraded)
        return
    except Exception as error:
        where = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        raise AssertionError(f"raised {type(error).__name__}: {error}{where}") from error
    if diary.degraded:
        raise AssertionError(disabled(diary.degraded[0]))
    diary.stopped = state.stop_reason
    diary.note(END, state)


def disabled(told: dict[str, Any]) -> str:
    """An error that no run ends by, as a sentence."""
    return f"raised {told['error']}; in event {told['event']}, step {told['step']}"


class Grade:
    """Gives an accuracy, for callbacks that read one."""

    def eval_start(self, state: State) -> None:
        """Forget the last evaluation."""
        self._right: list[Tensor] = []

    def eval_batch_end(self, state: State) -> None:
        """Count one batch."""
        self._right += (state.logits.argmax(dim=-1) == state.labels).float().unbind()

    def eval_end(self, state: State) -> None:
        """The share of samples that are right."""
        state.metrics["accuracy"] = float(torch.stack(self._right).mean())


class Broken(Exception):
    """What data that fail raise."""


@attrs.frozen
class Data:
    """Batches, shuffled by torch's own random numbers, as those of a user's loader may be."""

    shuffled: bool = True
    broken: bool = False

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(BATCHES, ROWS, WIDTH, generator=generator)
        order = torch.randperm(BATCHES).tolist() if self.shuffled else range(BATCHES)
        for place, number in enumerate(order):
            if self.broken and place == BATCHES // 2:
                raise Broken
            yield {"input": inputs[number], "labels": torch.arange(ROWS) % CLASSES}


@options
class Squares:
    """Mean squared difference of logits."""

    def build(self) -> Callable[..., Tensor]:
        """The loss."""
        return squares


def squares(student: Tensor, teacher: Tensor) -> Tensor:
    """mean (student - teacher)^2, a scalar."""
    return (student - teacher.detach()).square().mean()


@contextmanager
def seeded() -> Iterator[None]:
    """The random numbers of torch, Python and NumPy start anew, and are as they were outside."""
    numpy, python = sys.modules.get("numpy"), random.getstate()
    numbers = None if numpy is None else numpy.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random.seed(0)
        if numpy is not None:
            numpy.random.seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            if numpy is not None:
                numpy.random.set_state(numbers)


@contextmanager
def listened(failures: list[str]) -> Iterator[None]:
    """What the loop logs about callbacks that fail while a run ends is put into a list, and printed nowhere."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            error = record.exc_info[1] if record.exc_info else None
            failures.append(record.getMessage() + ("" if error is None else f": {type(error).__name__}: {error}"))

    logger, listener = logging.getLogger("hookbrew"), Listener(logging.ERROR)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(listener)
    try:
        yield
    finally:
        logger.removeHandler(listener)
        logger.propagate = propagate
