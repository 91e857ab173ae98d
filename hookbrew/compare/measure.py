"""Models beside each other on the same data, in one process: size, work, speed, memory, quality, layers."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import attrs
import torch
from torch import nn

from hookbrew import words
from hookbrew.compare.entry import Entry, entered, placed, weight
from hookbrew.compare.flops import flops
from hookbrew.compare.look import Look
from hookbrew.compare.result import Comparison, Measured
from hookbrew.compare.speed import Speed, timed
from hookbrew.errors import DataError, HookbrewError
from hookbrew.loop import Batch, Feed, Given, autocast, moved, size_of, split
from hookbrew.loop.device import threads as limited
from hookbrew.modes import evaluating
from hookbrew.objective import Names
from hookbrew.size import params

log = logging.getLogger("hookbrew")
SIZES = (1, 8, 32)
"""Batch sizes, if nothing else is said: those for which there is enough data."""
DRAWN = 8
"""So many batches of each size are timed."""

Drawn = Callable[[int], Sequence[Batch]]
"""Batches of a size, as many as are timed; none if there is not enough data for one."""


@attrs.frozen(kw_only=True)
class How:
    """What is measured, and how often."""

    sizes: Sequence[int] | None = None
    """Batch sizes at which speed is measured; SIZES when left out, and none at all for an empty list."""
    rounds: int = 20
    """How often each model is timed at each of them."""
    threads: int | None = 1
    """CPU threads of torch while time is taken; None leaves them as they are."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """fp32 is each model as it is, the others are autocast."""
    limit: int | None = None
    """How many batches of the data are evaluated; all when left out."""
    layers: str | Mapping[str, str] | None = None
    """The layers whose similarity is measured: a selector for all models, or for some by name; `hidden[*]` when left
    out, what goes in and out of each block."""

    def __attrs_post_init__(self) -> None:
        """Raise HookbrewError for numbers that mean nothing."""
        counts = [("rounds", self.rounds), ("threads", self.threads), ("limit", self.limit)]
        for key, value in [*counts, *(("sizes", size) for size in self.sizes or ())]:
            if value is not None and value < 1:
                raise HookbrewError(f"{key} must be >= 1: {value}")
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise HookbrewError(f"precision: {words.hint(self.precision, ('fp32', 'bf16', 'fp16'))}")

    def selected(self, entries: Sequence[Entry]) -> list[Entry]:
        """The models with the layers that were asked for; raises HookbrewError for a name that none has."""
        names = [entry.name for entry in entries]
        asked = dict.fromkeys(names, self.layers) if isinstance(self.layers, str) else dict(self.layers or {})
        for name in asked:
            if name not in names:
                raise HookbrewError(f"layers: no model is called {name!r}; {words.hint(name, names)}")
        return [
            attrs.evolve(entry, layers=asked[entry.name], chosen=True) if entry.name in asked else entry
            for entry in entries
        ]


def compare(models: Mapping[str, nn.Module], batches: Iterable[Any], **options: Any) -> Comparison:
    """Compare models by name, the first with all others, on batches as `fit` takes them: a list or a DataLoader.

    options: those of `How`, and what the keys of a batch are as for `hb.Distillation`: labels, mask, logits, causal,
    classes, aligned, index, fields. Models stay on their device, in their modes, and as they were. Speed is measured on
    batches cut out of these, padded as they are.

    Raises HookbrewError for options that there are not, DataError for a batch that does not fit.
    """
    ways, reads = ({field.name for field in attrs.fields(cls)} for cls in (How, Names))
    for key in options:
        if key not in ways | reads | {"fields"}:
            raise HookbrewError(f"compare takes no {key!r}; {words.hint(key, ways | reads | {'fields'})}")
    how = How(**{key: value for key, value in options.items() if key in ways})
    names = Names(**{key: value for key, value in options.items() if key in reads})
    feed = Given(batches, options.get("fields", ()))
    return compared(how.selected(entered(models, names)), feed, names, how, partial(cut, feed))


def cut(feed: Feed, size: int) -> list[Batch]:
    """Batches of a size out of larger ones."""
    parts = (part for batch in feed.epoch(1) for part in split(batch, size))
    return list(islice((part for part in parts if size_of(part) == size), DRAWN))


def compared(
    entries: Sequence[Entry],
    feed: Feed,
    names: Names,
    how: How,
    drawn: Drawn,
    *,
    say: Callable[[str], object] = log.info,
    data: str = "",
) -> Comparison:
    """The comparison; drawn: gives the batches on which speed is measured. say is told what comes next.

    data: what the samples are called.
    """
    device = placed(entries)
    precise = partial(autocast, how.precision, device)
    every = len(feed)
    total = every if how.limit is None else min(how.limit, every)
    look = Look(entries=entries, names=names, device=device, autocast=precise, batches=total)
    with evaluating(*(entry.module for entry in entries)), torch.no_grad():
        look.settle(feed.first()[0])
        say(f"evaluating {words.several(entry.name for entry in entries)} on {total:,} batches")
        look.run(islice(feed.epoch(1), total))
        pace = Pace(entries=entries, look=look, how=how, drawn=drawn, say=say)
        speeds = [*pace.speeds()]
    similar, qualities = look.similarities(), look.qualities()
    models = tuple(
        Measured(
            name=entry.name,
            **sized(entry),
            flops=pace.flops.get(entry.name),
            quality=qualities[entry.name],
            speeds=tuple(speed[entry.name] for speed in speeds),
            similarity=similar.get(entry.name),
        )
        for entry in entries
    )
    facts = {"data": data, **told(device, how), "batches": total, "whole": total == every}
    return Comparison(models=models, samples=look.samples, facts=facts, notes=tuple(look.notes))


def sized(entry: Entry) -> dict[str, Any]:
    """How large a model is."""
    whole = params(entry.module, 0)
    written = weight([value for value in entry.module.state_dict().values() if isinstance(value, torch.Tensor)])
    return {
        "kind": whole.model,
        "parameters": whole.whole.parameters,
        "weights": whole.whole.bytes,
        "disk": written if entry.disk is None else entry.disk,
        "filed": entry.disk is not None,
    }


@attrs.define
class Pace:
    """What is measured on batches of one size each."""

    entries: Sequence[Entry]
    look: Look
    how: How
    drawn: Drawn
    say: Callable[[str], object]
    flops: dict[str, int] = attrs.field(factory=dict)
    """Of one sample, by model."""

    def speeds(self) -> Iterator[dict[str, Speed]]:
        """For each batch size the speed of each model; raises DataError where somebody asked for one that is too large.

        The first one's batches say how much a sample is to compute.
        """
        for size in SIZES if self.how.sizes is None else self.how.sizes:
            batches = self.drawn(size)
            if not batches:
                if self.how.sizes is not None:
                    raise DataError(f"there is no batch of {size} samples in the data; ask for smaller ones")
                self.look.note(f"no speed at batch size {size}: there are not as many samples")
                continue
            self.say(f"timing batches of {size}, {self.how.rounds} rounds")
            yield self.speed(size, batches)

    def speed(self, size: int, batches: Sequence[Batch]) -> dict[str, Speed]:
        """The speed of all models on the same batches."""
        look = self.look
        with ExitStack() as stack:
            stack.enter_context(limited(self.how.threads))
            calls: dict[str, list[Callable[[], object]]] = {}
            for entry in self.entries:
                given = [entry.inputs(moved(batch, look.device), look.names) for batch in batches]
                calls[entry.name] = [partial(self.run, entry, inputs) for inputs in given]
                if entry.name not in self.flops:
                    self.count(entry, given, size)
            return timed(calls, size, rounds=self.how.rounds, device=look.device)

    def run(self, entry: Entry, inputs: Mapping[str, Any]) -> object:
        """One forward, with an autocast of its own: over several, it would keep what it cast of trained weights."""
        with self.look.autocast():
            return entry.module(**inputs)

    def count(self, entry: Entry, given: Sequence[Mapping[str, Any]], size: int) -> None:
        """Count the work of a sample; a model that cannot be run so is noted, and one that does less the next time."""
        try:
            works = [flops(entry.module, inputs) for inputs in (*given, given[0])]
            self.flops[entry.name] = sum(works[:-1]) // (size * len(given))
            if not works[0] or works[-1] < works[0]:
                many = f"{works[-1]:,} of {works[0]:,} operations" if works[0] else "no operation that counts"
                said = f"a batch seen before takes {many}; of what it remembers, times say nothing"
                self.look.note(f"{entry.name}: {said}")
        except (RuntimeError, NotImplementedError) as error:
            self.look.note(f"{entry.name}: FLOPs cannot be counted: {str(error).partition(chr(10))[0]}")


def told(device: torch.device, how: How) -> dict[str, Any]:
    """Where and with what it was measured."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": how.threads or torch.get_num_threads(),
        "precision": how.precision,
        "rounds": how.rounds,
        "hookbrew": version("hookbrew"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def processor() -> str:
    """The name of the CPU, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
