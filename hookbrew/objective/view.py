"""What the taps of student and teachers give, each read once a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from hookbrew.errors import ConfigError, Problem
from hookbrew.objective.sides import Selector
from hookbrew.objective.source import Source, collected
from hookbrew.taps import Taps

LOGITS = "logits"
"""The tap of the student that evaluation reads."""


class View:
    """The taps of all models, by the model's name: the selectors of each loss that reads it, under its table's path.

    Of the student also its logits, for evaluation. Raises ConfigError with all selectors that cannot be resolved.
    """

    def __init__(
        self, models: Mapping[str, nn.Module], sources: Sequence[Source], logits: Selector, at: str = ""
    ) -> None:
        self._selectors: dict[tuple[str, str], Selector] = {
            ("student", LOGITS): logits if isinstance(logits, str) else tuple(logits)
        }
        self._places = {("student", LOGITS): f"{at}data.logits"}
        for source in sources:
            for model, selector in source.selectors.items():
                side = "student" if model == "student" else "teacher"
                inside = f".{model}" if side == "teacher" and isinstance(source.table.teacher, Mapping) else ""
                self._selectors[model, source.path] = selector if isinstance(selector, str) else tuple(selector)
                default = getattr(source.table, side) is None and selector != LOGITS
                self._places[model, source.path] = f"{at}data.logits" if default else f"{source.path}.{side}{inside}"
        problems = list[Problem]()
        self.taps = {name: self._tapped(name, model, problems) for name, model in models.items()}
        self._read: dict[str, dict[Selector, Any]] = {name: {} for name in models}
        """What was read of the last batch, by model and selector."""
        self._parts: dict[str, dict[Selector, tuple[list[str], bool]]] = {name: {} for name in models}
        """By model and selector, the canonical paths of what it gives, and whether that is a list; see `seen`."""
        self._named = {place: [tap for tap, _ in named(place[1], s)] for place, s in self._selectors.items()}
        if problems:
            raise ConfigError(list(dict.fromkeys(problems)))

    def _tapped(self, name: str, model: nn.Module, problems: list[Problem]) -> Taps:
        """The taps of one model; a selector that cannot be resolved becomes a problem."""
        found = {}
        for (reader, path), selector in self._selectors.items():
            for tap, text in named(path, selector) if reader == name else ():
                with collected(problems, self._places[name, path]):
                    Taps(model, {name: text})
                    found[tap] = text
        return Taps(model, found)

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
        for read in self._read.values():
            read.clear()
        for taps in self.taps.values():
            taps.clear()

    def run(self, model: str, inputs: Mapping[str, Any]) -> Any:
        """A forward that is recorded; what is read from now on is of this one. None if it was stopped."""
        self._read[model].clear()
        return self.taps[model].run(**inputs)

    def read(self, model: str, path: str) -> Any:
        """A tensor, or a list of them where the selector gives one or is a list; terms with one selector share it."""
        key, read = self._selectors[model, path], self._read[model]
        if key not in read:
            taps, named = self.taps[model], self._named[model, path]
            if isinstance(key, str):
                read[key] = taps[named[0]]
            else:
                read[key] = [tensor for tap in named for tensor in many(taps[tap])]
        return read[key]

    def seen(self, model: str) -> dict[str, Tensor]:
        """All that is read of the last forward of a model, by canonical path; what one path gives twice has numbers."""
        found, parts = dict[str, Tensor](), self._parts[model]
        for (reader, path), selector in self._selectors.items():
            if reader == model:
                read = self.read(model, path)
                if selector not in parts:
                    parts[selector] = [*self._paths(model, path)], isinstance(read, list)
                found.update(zip(parts[selector][0], many(read), strict=True))
        return found

    def _paths(self, model: str, path: str) -> Iterator[str]:
        """The canonical path of each tensor that a selector gives."""
        for tap in self._named[model, path]:
            paths, count = self.taps[model].paths[tap], len(many(self.taps[model][tap]))
            yield from paths if len(paths) == count else (f"{' and '.join(paths)} {i}" for i in range(count))

    def paths(self, model: str, path: str) -> list[str]:
        """What a loss reads of a model, by the paths that `seen` had; path: the loss's place."""
        return self._parts[model][self._selectors[model, path]][0]

    def place(self, model: str, tensors: Mapping[str, Tensor]) -> None:
        """Be as if a forward had given these, by the paths that `seen` had for an earlier one."""
        self.taps[model].clear()
        for selector, (paths, several) in self._parts[model].items():
            found = [tensors[path] for path in paths]
            self._read[model][selector] = found if several else found[0]

    def sides(self, source: Source, pair: int | None) -> list[Any]:
        """What a source compares, or one pair of it: of the student, then of each teacher."""
        found = []
        for model in source.selectors:
            read = self.read(model, source.path)
            found.append(read if pair is None else read[pair])
        return found

    def logits(self) -> Any:
        """Those of the student, a tensor or a list."""
        return self.read("student", LOGITS)

    def settle(self, inputs: Callable[[str], Mapping[str, Any]]) -> None:
        """Find out what aliases stand for; raises ConfigError with all that stand for nothing."""
        problems = list[Problem]()
        for model, taps in self.taps.items():
            if taps.pending:
                layout = taps.survey(**inputs(model))
                for tap in taps.pending:
                    path = tap if (model, tap) in self._places else tap.rpartition(" ")[0]
                    with collected(problems, self._places[model, path]):
                        taps.settle(tap, layout)
        if problems:
            raise ConfigError(problems)

    def stop(self, *, allowed: bool) -> None:
        """Let forwards of the teachers end with the last tensor that a loss reads, if none reads their output."""
        for model, taps in self.taps.items():
            if model != "student":
                taps.stop = allowed and taps.whole is None

    @property
    def last(self) -> dict[str, str]:
        """The path of the module at which forwards of a teacher end, by its name; those that end with their output
        are left out."""
        return {model: taps.last for model, taps in self.taps.items() if model != "student" and taps.last is not None}

    def described(self, source: Source, pair: int | None) -> str:
        """What a source compares, or one pair of it: canonical paths."""
        found = []
        for model, selector in source.selectors.items():
            reads = [read for tap, _ in named(source.path, selector) for read in self.taps[model].paths.get(tap, ())]
            if source.takes == "flow":
                found.append(f"{model} {' and '.join(reads)}")
            elif reads:
                found.append(f"{model} {(reads * ((pair or 0) + 1))[pair or 0]}")
        return " ~ ".join(found)


def named(path: str, selector: Selector) -> list[tuple[str, str]]:
    """The names of taps with their selectors: of a list, one for each."""
    return [(path, selector)] if isinstance(selector, str) else [(f"{path} {i}", s) for i, s in enumerate(selector)]


def many(read: Any) -> list[Any]:
    """What a tap gave as a list."""
    return read if isinstance(read, list) else [read]
