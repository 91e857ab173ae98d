"""One pass over the data: what each model says, and what its layers hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import attrs
import torch
from torch import Tensor

from hookbrew.compare.entry import Entry
from hookbrew.compare.layers import TAP, Gathered, Similarity, layered, mask_of, read
from hookbrew.compare.quality import Answer, Quality, Tally, answers
from hookbrew.errors import ObjectiveError, SelectorError
from hookbrew.loop import Batch, moved, size_of
from hookbrew.objective import Names
from hookbrew.objective.teachers import require_order
from hookbrew.objective.tokens import apart
from hookbrew.taps import Taps

Autocast = Callable[[], AbstractContextManager[object]]


@attrs.define
class Look:
    """What is found out of the models, batch by batch."""

    entries: Sequence[Entry]
    names: Names
    device: torch.device
    autocast: Autocast
    batches: int
    notes: list[str] = attrs.field(factory=list)
    """What could not be measured, and why."""
    samples: int = 0
    taps: list[Taps] = attrs.field(factory=list)
    paths: dict[str, list[str]] = attrs.field(factory=dict)
    """Of the layers of each model that has any."""
    tallies: dict[str, Tally] = attrs.field(factory=dict)
    gathered: dict[str, Gathered] = attrs.field(factory=dict)
    """Of each model but the first, as long as its layers can be compared."""
    _disagreeing: set[str] = attrs.field(factory=set)

    def settle(self, batch: Batch) -> None:
        """Look at the first batch: which layers there are, and whether labels can be compared with logits."""
        for entry in self.entries:
            inputs = moved(entry.inputs(batch, self.names), self.device)
            if entry.own(batch).keys() & {*self.names.kept}:
                require_order(entry.module, ["the comparison"], self.names, "")
            selectors = entry.selectors
            try:
                with self.autocast():
                    self.paths[entry.name] = layered(entry.module, entry.layers, inputs)
                selectors = {**selectors, TAP: entry.layers}
            except SelectorError as error:
                if entry.chosen:
                    raise
                self.note(f"{entry.name}: no similarity of layers: {error}")
            self.taps.append(Taps(entry.module, selectors))
            self.tallies[entry.name] = Tally()
        first, *others = self.entries
        for entry in others:
            if first.name in self.paths and entry.name in self.paths:
                self.gathered[entry.name] = Gathered(self.batches)

    def note(self, text: str) -> None:
        """Keep what a user has to know, once."""
        if text not in self.notes:
            self.notes.append(text)

    def run(self, batches: Iterable[Batch]) -> None:
        """All models on all batches."""
        with ExitStack() as stack:
            for taps in self.taps:
                stack.enter_context(taps)
                stack.callback(taps.clear)
            for batch in batches:
                self.see(moved(batch, self.device))

    def see(self, batch: Batch) -> None:
        """All models on one batch; the first one's answers and layers are kept for the others."""
        self.samples += size_of(batch)
        first = self.entries[0]
        theirs: tuple[list[Answer], list[Tensor]] = [], []
        for entry, taps in zip(self.entries, self.taps, strict=True):
            own = entry.own(batch)
            with self.autocast():
                taps.run(**entry.inputs(batch, self.names))
            logits = [one for name in entry.selectors for one in listed(taps[name])]
            found = [*answers(logits, own, self.names, f"model {entry.name!r}")]
            layers = read(taps) if entry.name in self.paths else []
            for answer in found:
                self.tallies[entry.name].add(answer)
            if entry is first:
                theirs = found, layers
                continue
            differ = self.differ(entry, batch)
            self.agree(entry, found, theirs[0], differ=differ)
            self.gather(entry, layers, theirs[1], batch, differ=differ)

    def differ(self, entry: Entry, batch: Batch) -> bool:
        """Whether a model reads other tokens than the first: position i is then not the same for both."""
        first = self.entries[0]
        if self.names.aligned or first.side == entry.side:
            return False
        sides = [side for side in (first.side, entry.side) if len(side) > 1]
        return any(apart(batch, side[1], self.names) is not None for side in sides)

    def agree(self, entry: Entry, ours: Sequence[Answer], theirs: Sequence[Answer], *, differ: bool) -> None:
        """Count where it says the same as the first model, if both have the same places."""
        if entry.name in self._disagreeing:
            return
        places = [[tuple(answer.there.shape) for answer in side] for side in (ours, theirs)]
        tokens = any(len(place) > 1 for place in places[0])
        if places[0] != places[1] or (differ and tokens):
            why = "they read other tokens" if differ else f"places {places[0]} and {places[1]} differ"
            self.note(f"{entry.name}: no agreement with {self.entries[0].name}: {why}")
            self._disagreeing.add(entry.name)
            self.tallies[entry.name].compared = [0, 0]
            return
        for answer, first in zip(ours, theirs, strict=True):
            self.tallies[entry.name].agree(answer, first)

    def gather(
        self, entry: Entry, ours: Sequence[Tensor], theirs: Sequence[Tensor], batch: Batch, *, differ: bool
    ) -> None:
        """Keep rows of its layers beside those of the first model."""
        if entry.name not in self.gathered:
            return
        masks = mask_of(entry.own(batch), self.names), mask_of(self.entries[0].own(batch), self.names)
        try:
            self.gathered[entry.name].add(ours, theirs, masks, apart=differ)
        except ObjectiveError as error:
            if entry.chosen:
                raise
            del self.gathered[entry.name]
            self.note(f"{entry.name}: no similarity of layers: {error}")

    def qualities(self) -> Mapping[str, Quality]:
        """What each model comes to."""
        return {name: tally.quality(causal=bool(self.names.causal)) for name, tally in self.tallies.items()}

    def similarities(self) -> Mapping[str, Similarity]:
        """The similarity of each model's layers with those of the first."""
        first = self.paths.get(self.entries[0].name, [])
        return {name: found.similarity(self.paths[name], first) for name, found in self.gathered.items() if found.ours}


def listed(value: Any) -> list[Tensor]:
    """What a tap gave as a list."""
    return value if isinstance(value, list) else [value]
