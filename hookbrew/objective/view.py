"""What the taps of student and teachers give, each read once a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from hookbrew.errors import ConfigError, HookbrewError, Problem
from hookbrew.objective.attended import ATTENDED
from hookbrew.objective.heads import first
from hookbrew.objective.sides import Selector
from hookbrew.objective.source import Source, collected
from hookbrew.objective.tile import large, tileable
from hookbrew.taps import Taps, synced
from hookbrew.taps.read import compiled

LOGITS = "logits"
"""The tap of the student that evaluation reads."""
WHOLE = "student's evaluation"
"""The name of taps of the student that let a forward be whole, where those of the training end it before its head."""


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
        self._models, self._told, self._stack = dict(models), dict(self._selectors), ExitStack()
        problems = list[Problem]()
        self.taps = {name: self._tapped(name, model, problems) for name, model in models.items()}
        self._read: dict[str, dict[Selector, Any]] = {name: {} for name in (*models, WHOLE)}
        """What was read of the last batch, by model and selector."""
        self._named = naming(self._selectors)
        self._soon = {name: [s.path for s in sources if s.takes in ATTENDED and name in s.teachers] for name in models}
        """What is read of a teacher at once: attention, whose queries and keys are gone when the student runs. Of large
        maps those are kept, which are smaller."""
        self._tileable = {source.path for source in sources if tileable(source)}
        self._whole = set[str]()
        """The models whose maps are of all samples: what compiled code gave may be gone with its next call, and where a
        wrapper averages gradients nobody has tried."""
        self._parts: dict[str, dict[Selector, tuple[list[str], bool]]] = {name: {} for name in models}
        """By model and selector, the canonical paths of what it gives, and whether that is a list; see `seen`."""
        if problems:
            raise ConfigError(list(dict.fromkeys(problems)))

    def prepare(
        self, selectors: Mapping[tuple[str, str], str], inputs: Callable[[str], Mapping[str, Any]], *, stop: bool
    ) -> None:
        """All that a forward needs which is recorded, inside `attached`: `divert`, `settle`, `stop`.

        inputs: what a model gets of a batch, by its name. Where something is diverted, the forward of a sample finds
        out where those of whole batches may end.
        """
        self._whole = {name for name, model in self._models.items() if compiled(model) or synced(model)}
        self.divert(selectors)
        self.settle(inputs)
        self.stop(allowed=stop)
        with torch.no_grad():
            for model, taps in self.taps.items() if selectors else ():
                if taps.stop:
                    self.run(model, first(inputs(model))[0])

    def divert(self, selectors: Mapping[tuple[str, str], str]) -> None:
        """Read something else of a model for a source, by the model's name and the source's path; whatever is left out
        as it was told. Forwards of a student that is diverted may end before its output, which
        evaluation reads of one that is whole."""
        wanted = {**self._told, **selectors}
        if any(model == "student" for model, _ in selectors):
            wanted[WHOLE, LOGITS] = wanted.pop(("student", LOGITS))
        if wanted == self._selectors:
            return
        before, self._selectors = self._selectors, wanted
        self._named, self._places[WHOLE, LOGITS] = naming(wanted), self._places["student", LOGITS]
        for name in (*self._models, WHOLE):
            old, new = ({p: s for (m, p), s in each.items() if m == name} for each in (before, wanted))
            if old != new:
                if name in self.taps:
                    self.taps.pop(name).__exit__(None, None, None)
                if new:
                    model = self._models["student" if name == WHOLE else name]
                    self.taps[name] = self._stack.enter_context(self._tapped(name, model, []))

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
        with ExitStack() as self._stack:
            for taps in self.taps.values():
                self._stack.enter_context(taps)
            self._stack.callback(self.forget)
            yield

    def forget(self) -> None:
        """Let go of the last batch: its tensors are as large as a step's. Backward, which goes through the graph alone,
        then frees each where it is done with it."""
        for read in self._read.values():
            if read:
                read.clear()
        for taps in self.taps.values():
            taps.clear()

    def run(self, model: str, inputs: Mapping[str, Any]) -> Any:
        """A forward that is recorded; what is read from now on is of this one. None if it was stopped."""
        self._read[model].clear()
        output = self.taps[model].run(**inputs)
        for path in self._soon.get(model, ()):
            with suppress(HookbrewError):  # the loss that reads it will say so, with its place
                if self.maps(model, path) is None:
                    self.read(model, path)
        return output

    def read(self, model: str, path: str) -> Any:
        """A tensor, or a list of them where the selector gives one or is a list; terms with one selector share it."""
        key, read = self._selectors[model, path], self._read[model]
        if key not in read:
            read[key] = self._found(model, path, self.taps[model].__getitem__)
        return read[key]

    def maps(self, model: str, path: str) -> Any:
        """In place of what `read` gives, large maps of attention that are computed by nobody yet; None where there is
        any other tensor, or the loss needs maps of all samples together."""
        if not self.tiled(model, path) or self._selectors[model, path] in self._read[model]:
            return None
        found = self._found(model, path, self.taps[model].maps)
        return None if any(one is None or not large(one) for one in many(found)) else found

    def tiled(self, model: str, path: str) -> bool:
        """Whether a loss may take what it reads of a model by tiles."""
        return path in self._tileable and model not in self._whole

    def _found(self, model: str, path: str, look: Callable[[str], Any]) -> Any:
        """What a look at the taps of a selector gives, a list where it gives several or is a list."""
        named = self._named[model, path]
        if isinstance(self._selectors[model, path], str):
            return look(named[0])
        return [one for tap in named for one in many(look(tap))]

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

    def sides(self, source: Source, pair: int | None, *, whole: bool = True) -> list[Any]:
        """What a source compares, or one pair of it: of the student, then of each teacher; whole: not as `maps`."""
        found = []
        for model in source.selectors:
            maps = None if whole else self.maps(model, source.path)
            read = self.read(model, source.path) if maps is None else maps
            found.append(read if pair is None else read[pair])
        return found

    def logits(self, inputs: Mapping[str, Any]) -> Any:
        """Those of the student for what it is given, a tensor or a list."""
        model = WHOLE if WHOLE in self.taps else "student"
        self.run(model, inputs)
        return self.read(model, LOGITS)

    def settle(self, inputs: Callable[[str], Mapping[str, Any]]) -> None:
        """Find out what aliases stand for; raises ConfigError with all that stand for nothing."""
        problems = list[Problem]()
        for model, taps in self.taps.items():
            if taps.pending:
                given = inputs("student" if model == WHOLE else model)
                layout = taps.survey(**(first(given)[0] if WHOLE in self.taps else given))
                for tap in taps.pending:
                    path = tap if (model, tap) in self._places else tap.rpartition(" ")[0]
                    with collected(problems, self._places[model, path]):
                        taps.settle(tap, layout)
        if problems:
            raise ConfigError(problems)

    def stop(self, *, allowed: bool) -> None:
        """Let forwards of the teachers end with the last tensor that a loss reads, if none reads their output; those of
        a student whose head is left out end before that."""
        for model, taps in self.taps.items():
            if model not in ("student", WHOLE):
                taps.stop = allowed and taps.whole is None
            elif model == "student":
                taps.stop = WHOLE in self.taps

    @property
    def last(self) -> dict[str, str]:
        """The path of the module at which forwards of a model end, by its name, with `:in` where they end before it;
        those that end with their output are left out."""
        return {model: taps.last for model, taps in self.taps.items() if taps.last is not None}

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


def naming(selectors: Mapping[tuple[str, str], Selector]) -> dict[tuple[str, str], list[str]]:
    """The names of taps by the model and the path that read them."""
    return {place: [tap for tap, _ in named(place[1], selector)] for place, selector in selectors.items()}


def named(path: str, selector: Selector) -> list[tuple[str, str]]:
    """The names of taps with their selectors: of a list, one for each."""
    return [(path, selector)] if isinstance(selector, str) else [(f"{path} {i}", s) for i, s in enumerate(selector)]


def many(read: Any) -> list[Any]:
    """What a tap gave as a list."""
    return read if isinstance(read, list) else [read]
