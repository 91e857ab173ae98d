"""What the taps of student and teacher give, each read once a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from hookbrew.errors import ConfigError, Problem
from hookbrew.objective.source import Source, collected
from hookbrew.taps import Taps


class View:
    """The taps of one or two models, by side: a selector for each loss that reads it, under the path of its table.

    Of the student also `logits`, for evaluation. Raises ConfigError with all selectors that cannot be resolved.
    """

    def __init__(self, models: Mapping[str, nn.Module], sources: Sequence[Source]) -> None:
        problems = list[Problem]()
        self.taps = {side: tapped(model, side, sources, problems) for side, model in models.items()}
        self._read: dict[tuple[str, str], Any] = {}
        if problems:
            raise ConfigError(problems)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks are on the models inside, and gone outside, with all that they have seen."""
        with ExitStack() as stack:
            for taps in self.taps.values():
                stack.enter_context(taps)
            stack.callback(self.forget)
            yield

    def forget(self) -> None:
        """Let go of the last batch: its tensors are as large as a step's."""
        self._read.clear()
        for taps in self.taps.values():
            taps.clear()

    def run(self, side: str, inputs: Mapping[str, Any]) -> Any:
        """A forward that is recorded; what is read from now on is of this one. None if it was stopped."""
        self._read = {key: value for key, value in self._read.items() if key[0] != side}
        return self.taps[side].run(**inputs)

    def read(self, side: str, path: str) -> Any:
        """A tensor or a list of them; several terms share a list."""
        key = side, path
        if key not in self._read:
            self._read[key] = self.taps[side][path]
        return self._read[key]

    def logits(self) -> Tensor:
        """Those of the student."""
        logits: Tensor = self.taps["student"]["logits"]
        return logits

    def settle(self, inputs: Callable[[str], Mapping[str, Any]]) -> None:
        """Find out what aliases stand for; raises ConfigError with all that stand for nothing."""
        problems = list[Problem]()
        for side, taps in self.taps.items():
            if taps.pending:
                layout = taps.survey(**inputs(side))
                for path in taps.pending:
                    with collected(problems, f"{path}.{side}"):
                        taps.settle(path, layout)
        if problems:
            raise ConfigError(problems)

    def stop(self, *, allowed: bool) -> None:
        """Let forwards of the teacher end with the last tensor that a loss reads, if none reads its output."""
        if "teacher" in self.taps:
            self.taps["teacher"].stop = allowed and self.taps["teacher"].whole is None

    @property
    def last(self) -> str | None:
        """The path of the module at which forwards of the teacher end; None if they go on to its output."""
        return self.taps["teacher"].last if "teacher" in self.taps else None

    def described(self, source: Source, pair: int | None) -> str:
        """What a source compares, or one pair of it: canonical paths."""
        found = {side: taps.paths.get(source.path) for side, taps in self.taps.items()}
        number = pair or 0
        return " ~ ".join(f"{side} {(reads * (number + 1))[number]}" for side, reads in found.items() if reads)


def tapped(model: nn.Module, side: str, sources: Sequence[Source], problems: list[Problem]) -> Taps:
    """The taps of one model; a selector that cannot be resolved becomes a problem."""
    selectors = {"logits": "logits"} if side == "student" else {}
    for source in sources:
        if side == "student" or source.compares:
            selector = getattr(source.table, side) or "logits"
            with collected(problems, f"{source.path}.{side}"):
                Taps(model, {side: selector})
                selectors[source.path] = selector
    return Taps(model, selectors)
