"""The batches of a task: what `[data]` says, sampled, padded and shared out."""

from __future__ import annotations

from typing import Any

from hookbrew import factory, words
from hookbrew.config import Experiment
from hookbrew.errors import ConfigError, Problem
from hookbrew.loop import Batch, Loader, Pad, chosen
from hookbrew.objective import TASK, parted
from hookbrew.plan import place
from hookbrew.ranks import world


def require_labels(experiment: Experiment, batch: Batch) -> None:
    """Raise ConfigError when a batch of the evaluation data lacks labels."""
    task = batch[TASK] if experiment.tasks else ""
    data, part = experiment.parts[task].data, parted(batch, "student")
    for key in [data.labels] if isinstance(data.labels, str) else data.labels:
        if key not in part:
            message = f"callback 'evaluate' needs labels, and the batch has no key {key!r}; {words.hint(key, part)}"
            raise ConfigError([Problem(f"{place(task)}data.evaluate", message)])


def feed(experiment: Experiment, task: str, which: str) -> Loader:
    """The batches of a task's `train`, in the order of the seed, or of its `evaluate`, in their own."""
    data, training = experiment.parts[task].data, which == "train"
    samples = factory.build(getattr(data, which), f"{place(task)}data.{which}")
    size = data.batch_size if training else data.evaluate_batch_size or data.batch_size
    seed = experiment.seed if training and data.shuffle else None
    return loader(experiment, task, samples, size=size, seed=seed, training=training)


def loader(
    experiment: Experiment, task: str, samples: Any, *, size: int, seed: int | None, training: bool = False
) -> Loader:
    """The batches that a task makes of samples, `size` of them each; training: shared by several processes."""
    data, at = experiment.parts[task].data, place(task)
    pad = Pad(data.pad, data.fields)
    return Loader(
        samples,
        batch_size=size,
        seed=seed,
        collate=pad if data.collate is None else factory.build(data.collate, f"{at}data.collate"),
        fields=data.fields,
        workers=data.workers,
        ranks=world() if training else None,
        pin=chosen(experiment.train.device).type == "cuda",
    )
