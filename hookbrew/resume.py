"""Going on with a run: from which checkpoint, and how exactly.

exact       all that the bytes depend on is the same: the student will be equal, bit for bit, to one never stopped
data        something else differs: no sample is repeated or left out, but numbers are others
weights     the data or their order differ too: what is left of this epoch is not what was left
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
import torch

from hookbrew import words
from hookbrew.config import Experiment, plain, settings
from hookbrew.errors import FolderError, ResumeError
from hookbrew.folder import STATUS
from hookbrew.loop import digest
from hookbrew.prepare import Prepared
from hookbrew.ranks import world
from hookbrew.store import Checkpoint, Store

Level = Literal["exact", "data", "weights"]
LEVELS: tuple[Level, ...] = ("exact", "data", "weights")
"""From the best to the worst."""
WATCHING = frozenset({"checkpoint", "evaluate", "maps", "metrics", "progress", "tensorboard", "weights", "best"})
"""Callbacks that change nothing in the training."""
FREE = (
    *("output", "plugins", "pythonpath", "train.log_every", "train.evaluate_every", "train.timeout"),
    *("data.workers", "data.evaluate", "data.evaluate_batch_size"),
    *("cache.folder", "cache.tokenizer", "cache.missing"),
)
"""Settings that the bytes of a student do not depend on."""
ORDER = ("seed", "data", "samples", "first batch", "train.accumulate", "train.tau")
"""What says which samples come next."""


@attrs.frozen
class Difference:
    """One thing that is not as it was."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {told(self.before)} before, {told(self.now)} now"


@attrs.frozen
class Resumed:
    """From where a run goes on, and how exactly."""

    checkpoint: Checkpoint
    level: Level


@attrs.frozen
class Match:
    """How a checkpoint compares with the run that would go on from it."""

    same: int
    differences: tuple[Difference, ...]

    @property
    def level(self) -> Level:
        """How exactly the run goes on."""
        if not self.differences:
            return "exact"
        ordered = any(under(difference.key, ORDER) for difference in self.differences)
        return "weights" if ordered else "data"

    def __str__(self) -> str:
        if not self.differences:
            return f"{self.level}: all {self.same} settings and facts are the same"
        listed = "".join(f"\n  {difference}" for difference in self.differences)
        differ = "1 differs" if len(self.differences) == 1 else f"{len(self.differences)} differ"
        return f"{self.level}: {self.same} settings and facts are the same, {differ}{listed}"


def told(value: Any) -> str:
    """A value in a message; what is not there is said."""
    return "not there" if value is None else repr(value)


def compared(before: Mapping[str, Any], now: Mapping[str, Any]) -> Match:
    """What of two accounts by `facts` is the same."""
    keys = sorted({*before, *now})
    differences = [Difference(key, before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)]
    return Match(len(keys) - len(differences), tuple(differences))


def facts(prepared: Prepared) -> dict[str, Any]:
    """All that the bytes of the student depend on: settings that say so, data, and what computes."""
    experiment = prepared.experiment
    active = attrs.evolve(experiment, callbacks=[c for c in experiment.callbacks if c.type not in WATCHING])
    made = {
        **{key: value for key, value in settings(plain(active)).items() if not under(key, FREE)},
        "samples": prepared.feed.samples,
        "first batch": digest(prepared.first),
        "torch": str(torch.__version__),
        "device": next((p.device.type for p in prepared.distillation.student.parameters()), "cpu"),
        "threads": experiment.train.threads or torch.get_num_threads(),
        "processes": world().size,
        "in chunks": any(part.plan.heads for part in prepared.distillation.objective.parts.values()),
    }
    kept: dict[str, Any] = json.loads(json.dumps(made, default=str))  # TOML has dates, and JSON none
    return kept


def under(key: str, roots: Sequence[str]) -> bool:
    """Whether a dotted key is one of these, or inside one; `tasks.NAME.data` is in `data`."""
    inner = key.split(".", 2)[2] if key.startswith("tasks.") and key.count(".") > 1 else key
    return any(each == root or each.startswith((f"{root}.", f"{root}[")) for each in (key, inner) for root in roots)


def newest(experiments: Sequence[Experiment]) -> tuple[int, Checkpoint | None, list[str]]:
    """The last of several stages that has a checkpoint, the checkpoint, and what is wrong with newer ones.

    Raises CheckpointError for a stage that has some of which none is whole.
    """
    for place in reversed(range(len(experiments))):
        found, wrong = Store(where(experiments[place])).newest()
        if found is not None:
            return place, found, wrong
    return 0, None, []


def where(experiment: Experiment) -> Path:
    """Where the checkpoints of a stage are."""
    (keeper,) = [c.options for c in experiment.callbacks if c.type == "checkpoint"][:1]
    return experiment.output / str(keeper.folder)


def require_pace(match: Match) -> None:
    """Raise ResumeError when steps would be of other sizes than those that were counted.

    The place in the epoch and the length of the run are counted in them: samples would be repeated, or left out.
    """
    for difference in match.differences:
        if difference.key.endswith("batch_size") or difference.key in ("train.accumulate", "samples"):
            raise ResumeError(f"{difference}; the place in the data is counted in steps: resume with what it was")


def require_run(folder: Path) -> Path:
    """The configuration in a run's folder; raises FolderError unless that is one."""
    resolved = folder / "resolved.toml"
    if resolved.is_file() and (folder / STATUS).is_file():
        return resolved
    if not folder.exists():
        beside = [path.name for path in folder.parent.glob("*") if (path / STATUS).is_file()]
        raise FolderError(f"there is no run {folder}; {words.hint(folder.name, beside)}")
    missing = STATUS if resolved.is_file() else resolved.name
    raise FolderError(f"{folder} is no folder of a run: it has no {missing}")
