"""One way to do a job: its models, its data, what it computed; and the loop that everybody writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor, nn
from work import Batch, Work

RATE = 1e-4
Optimizer = torch.optim.Optimizer


def adamw(parameters: Any, *, fused: bool = True) -> Optimizer:
    """What moves the student; by hand as torch has it when nothing is said."""
    return torch.optim.AdamW(parameters, RATE, fused=True) if fused else torch.optim.AdamW(parameters, RATE)


def quiet(_: int) -> None:
    """Nothing is done at a batch."""


@attrs.define
class Loader:
    """Gives batches, and notes the time at each: that of the process on a CPU, else that of the clock."""

    batches: Sequence[Batch]
    steps: int
    device: torch.device
    warm: int = 0
    """How many of the first steps are left out."""
    seen: Callable[[int], None] = quiet
    """Called before each batch, with its number."""
    times: list[float] = attrs.field(factory=list)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        self.times.clear()
        for step in range(self.steps):
            self.seen(step)
            self.times.append(self.now(settled=step in (self.warm, self.steps - 1)))
            yield self.batches[step % len(self.batches)]

    def now(self, *, settled: bool) -> float:
        """settled: whether what a GPU was told has to be done; asked twice a round, since it stops the host."""
        if self.device.type != "cuda":
            return time.process_time()
        if settled:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def __call__(self) -> float:
        """Seconds a step, without the last, after which nobody asks for a batch."""
        return (self.times[-1] - self.times[self.warm]) / (self.steps - 1 - self.warm)

    def least(self) -> float:
        """Those of the fastest step; on a GPU, which is not waited for at each, the same as of all."""
        if self.device.type == "cuda":
            return self()
        return min(after - before for before, after in pairwise(self.times[self.warm :]))


class Caught(NamedTuple):
    """What hooks saw of a forward, under the names that transformers has for it."""

    logits: Tensor | None
    hidden_states: Mapping[int, Tensor]
    attentions: Mapping[int, Tensor]


def places(hidden: Sequence[int], maps: Sequence[int]) -> dict[str, tuple[str, int]]:
    """Where a BERT has its hidden states and attentions: by path, what it is, and its number."""
    found = {f"bert.encoder.layer.{n - 1}" if n else "bert.embeddings": ("hidden", n) for n in hidden}
    return found | {f"bert.encoder.layer.{n}.attention.self": ("map", n) for n in maps}


def logits(output: Any) -> Any:
    """Those of a model of transformers; the output of any other."""
    return getattr(output, "logits", output)


def caught(output: Any, seen: Mapping[str, Any], where: Mapping[str, tuple[str, int]]) -> Caught:
    """Out of what was seen at each path; the attention module gives two tensors, and the last are the probabilities."""
    hidden = {n: seen[path] for path, (what, n) in where.items() if what == "hidden"}
    return Caught(logits(output), hidden, {n: seen[path][1] for path, (what, n) in where.items() if what == "map"})


class Hooked:
    """A model with hooks on it, and what they keep."""

    def __init__(self, model: nn.Module, where: Mapping[str, tuple[str, int]]) -> None:
        self.model, self.where = model, where
        self.seen: dict[str, Any] = {}
        for path in where:
            model.get_submodule(path).register_forward_hook(self.keeping(path))

    def keeping(self, path: str) -> Callable[..., None]:
        """The hook of one module."""

        def keep(_: nn.Module, __: Any, output: Any) -> None:
            self.seen[path] = output

        return keep

    def __call__(self, **inputs: Tensor) -> Caught:
        """A forward."""
        found = caught(self.model(**inputs), self.seen, self.where)
        self.seen.clear()
        return found


@attrs.define(eq=False)
class Side:
    """One way to do a job: it keeps its models, and trains them on."""

    work: Work
    student: nn.Module
    teacher: nn.Module
    projections: nn.ModuleList
    loader: Loader
    losses: list[Tensor] = attrs.field(factory=list)
    """Of the steps of the last call."""

    def loss(self, own: Any, theirs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """As a person writes it."""
        found = self.work.loss(own, theirs, batch.get("labels"), self.projections)
        self.losses.append(found.detach())
        return found

    def trained(self) -> list[nn.Parameter]:
        """All that moves."""
        return [*self.student.parameters(), *self.projections.parameters()]

    def places(self) -> tuple[dict[str, tuple[str, int]], dict[str, tuple[str, int]]]:
        """Where the student and the teacher are matched."""
        ours, theirs = (
            places([pair[side] for pair in self.work.hidden], [pair[side] for pair in self.work.maps])
            for side in (0, 1)
        )
        return ours, theirs

    def compared(self, *, asked: bool = False) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """From a batch to its loss, with hooks where something is matched; asked: the models give it themselves."""
        student, teacher = map(Hooked, (self.student, self.teacher), ({}, {}) if asked else self.places())
        more = self.work.asked if asked else {}

        def loss(batch: Mapping[str, Tensor]) -> Tensor:
            told, given = ({key: batch[key] for key in keys} for keys in (self.work.told, self.work.inputs))
            if asked:
                with torch.no_grad():
                    theirs: Any = self.teacher(**told, **more)
                return self.loss(self.student(**given, **more), theirs, batch)
            with torch.no_grad():
                theirs = teacher(**told)
            return self.loss(student(**given), theirs, batch)

        return loss


def by_hand(side: Side, *, fused: bool = False, asked: bool = False) -> Callable[[], None]:
    """The loop that everybody writes."""
    optimizer, loss = adamw(side.trained(), fused=fused), side.compared(asked=asked)

    def train() -> None:
        side.student.train()
        side.teacher.eval()
        for batch in side.loader:
            loss(batch).backward()
            optimizer.step()
            optimizer.zero_grad()

    return train


def sided(work: Work, device: torch.device, *, eager: bool = True) -> Side:
    """Models and projections, the same for all; eager: where attentions are matched, the one that gives them."""
    student, teacher = (model.to(device) for model in work.models())
    if work.maps and eager:
        for model in (student, teacher):
            model.set_attn_implementation("eager")
    torch.manual_seed(1)
    widths = (student.config.hidden_size, teacher.config.hidden_size) if work.hidden else (0, 0)
    projections = nn.ModuleList(nn.Linear(*widths) for _ in work.hidden).to(device)
    return Side(work, student, teacher, projections, Loader(work.batches(device), work.steps, device, work.warm))
