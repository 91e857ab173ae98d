"""One way to do a job: its models, its data, what it computed; and the loop that everybody writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import attrs
import torch
from loader import Clocked
from torch import Tensor, nn
from work import Work

RATE = 1e-4
Optimizer = torch.optim.Optimizer


def adamw(parameters: Any, *, fused: bool = True) -> Optimizer:
    """What moves the student; by hand as torch has it when nothing is said."""
    return torch.optim.AdamW(parameters, RATE, fused=True) if fused else torch.optim.AdamW(parameters, RATE)


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
    loader: Clocked
    fused: bool = True
    """Whether AdamW is one kernel, or as torch has it when nothing is said."""
    losses: list[Tensor] = attrs.field(factory=list)
    """Of the steps of the last call."""

    def adamw(self, parameters: Any = None) -> Optimizer:
        """What moves all that is trained, or these parameters."""
        return adamw(self.trained() if parameters is None else parameters, fused=self.fused)

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


def by_hand(side: Side, *, asked: bool = False) -> Callable[[], None]:
    """The loop that everybody writes."""
    optimizer, loss = side.adamw(), side.compared(asked=asked)

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
    return Side(work, student, teacher, projections, Clocked(work.batches(device), work.steps, device, work.warm))
