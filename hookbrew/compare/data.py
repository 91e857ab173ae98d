"""The data of a comparison: those that a run was evaluated on, whole and in batches of any size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import attrs

from hookbrew import factory
from hookbrew.compare.measure import DRAWN
from hookbrew.compare.named import known, unknown
from hookbrew.compare.source import Opened, Source
from hookbrew.config import Experiment
from hookbrew.errors import HookbrewError
from hookbrew.feeds import loader
from hookbrew.loop import Batch, Loader, mix
from hookbrew.objective import Names
from hookbrew.plan import place, placed


@attrs.frozen
class Data:
    """The samples of an evaluation."""

    name: str
    """What the table calls them."""
    experiment: Experiment
    task: str
    samples: Any

    @property
    def names(self) -> Names:
        """What the keys of its batches stand for."""
        data = self.experiment.parts[self.task].data
        return Names(**{field.name: getattr(data, field.name) for field in attrs.fields(Names)})

    @property
    def feed(self) -> Loader:
        """All samples, in their order."""
        data = self.experiment.parts[self.task].data
        size = data.evaluate_batch_size or data.batch_size
        return loader(self.experiment, self.task, self.samples, size=size, seed=None)

    def drawn(self, size: int) -> Sequence[Batch]:
        """Batches of one size, of samples drawn at random, the same ones each time; padded as any batch."""
        if len(self.samples) < size:
            return []
        seed = mix(self.experiment.seed, "compare", size)
        made = loader(self.experiment, self.task, self.samples, size=size, seed=seed)
        try:
            return list(islice(made.epoch(1), min(DRAWN, len(self.samples) // size)))
        finally:
            made.close()


def evaluated(source: Source, given: str | None, sets: Sequence[str] = ()) -> Data:
    """The evaluation data of a configuration or a run, or of the runs whose models are compared.

    sets: `key=value` settings that go over that configuration. Raises HookbrewError when there are none, or when the
    models' runs have others each.
    """
    opened = shared(source) if given is None else asked(source, given)
    if sets:
        opened = source.open(opened.path, sets)
    config = opened.experiment
    task = source.at(config)
    data = config.parts[task].data
    if data.evaluate is None:
        raise HookbrewError(f"{opened.path} has no {place(task)}data.evaluate; name data that has: --data FILE.toml")
    with placed(opened.document):
        samples = factory.build(data.evaluate, f"{place(task)}data.evaluate")
    return Data(f"{opened.path}{f' ({task})' if task else ''}", config, task, samples)


def asked(source: Source, given: str) -> Opened:
    """The configuration or the run that somebody named."""
    kind = known(given)
    if kind is None:
        raise unknown(given)
    if kind == "folder":
        raise HookbrewError(f"--data {given}: this folder is no run; name a run folder or a configuration file")
    return source.open(given)


def shared(source: Source) -> Opened:
    """That of the models; raises HookbrewError where each of them has other data."""
    every = list(source.opened.values())
    if not every:
        raise HookbrewError("there is nothing to compare them on; name a configuration or a run: --data FILE.toml")
    said = [source.told(opened) for opened in every]
    for opened, other in zip(every, said, strict=True):
        if other != said[0]:
            both = f"{every[0].path} and {opened.path}"
            raise HookbrewError(f"{both} have other evaluation data; say which counts: --data {every[0].path}")
    return every[0]
