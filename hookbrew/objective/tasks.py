"""Several objectives of one student: each batch says under `task` which one it is for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from hookbrew.errors import ConfigError, Problem
from hookbrew.objective.inputs import TASK
from hookbrew.objective.objective import Objective
from hookbrew.objective.plan import Wanted
from hookbrew.objective.teachers import joined
from hookbrew.objective.term import Term
from hookbrew.objective.value import Weighed


class Tasks:
    """What is minimised: the terms of all tasks, of which a batch has those of its own.

    The terms of `trec` are called `trec/kd_ce`, and its losses are a mean over its own samples of an optimizer step.
    """

    def __init__(self, parts: Mapping[str, Objective]) -> None:
        self.parts = dict(parts)
        first = next(iter(self.parts.values()))
        self.student = first.student
        # not by the bare names of tasks: a ModuleDict refuses some, as `type`, which are its own
        teachers = {f"{task}/teacher": part.teacher for task, part in self.parts.items() if part.teacher is not None}
        self.teacher = joined(teachers)
        self._last = first

    @property
    def extras(self) -> nn.ModuleDict:
        """What is trained besides the student: projections and losses that learn, as `trec/kd_ce/Linear`."""
        return nn.ModuleDict(
            {f"{task}/{name}": module for task, part in self.parts.items() for name, module in part.extras.items()}
        )

    @property
    def leaves(self) -> set[int]:
        """The ids of the parameters that the loss of every batch reaches, of whatever task."""
        return set[int].intersection(*(part.leaves for part in self.parts.values()))

    @property
    def terms(self) -> tuple[Term, ...]:
        """The parts of the loss, task by task; empty before `measure`."""
        return tuple(
            attrs.evolve(term, name=f"{task}/{term.name}") for task, part in self.parts.items() for term in part.terms
        )

    @property
    def outputs(self) -> tuple[Any, Any]:
        """What student and teacher returned for the last batch."""
        return self._last.outputs

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks are on all models inside, and gone outside."""
        with ExitStack() as stack:
            for part in self.parts.values():
                stack.enter_context(part.attached())
            yield

    def measure(self, batch: Mapping[str, Any], *, stop: bool = True, chunked: Wanted = "auto") -> None:
        """Measure the task that a batch is of; as `Objective.measure`."""
        self.of(batch).measure(batch, stop=stop, chunked=chunked)

    def forward(self, batch: Mapping[str, Any]) -> None:
        """Run the student and the teachers of the batch's task."""
        self._last = self.of(batch)
        self._last.forward(batch)

    def counts(self, batch: Mapping[str, Any], samples: int, device: torch.device) -> Tensor:
        """What is valid in a batch for each term, (terms,); 0 for those of other tasks."""
        mine = self.of(batch)
        return torch.cat(
            [
                part.counts(batch, samples, device) if part is mine else torch.zeros(len(part.terms), device=device)
                for part in self.parts.values()
            ]
        )

    def part(self, batch: Mapping[str, Any], counts: Tensor, totals: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """As `Objective.part`; means have zeros for the terms of other tasks."""
        mine, loss, means = self.of(batch), None, []
        for part in self.parts.values():
            own, counts, whole, totals = *cut(counts, part), *cut(totals, part)
            if part is mine:
                loss, own = part.part(batch, own, whole, progress)
            means.append(own if part is mine else torch.zeros_like(own))
        assert loss is not None
        return loss, torch.cat(means)

    def weighed(self, batch: Mapping[str, Any], samples: int, progress: float) -> Weighed:
        """As `Objective.weighed`; means and counts have zeros for the terms of other tasks."""
        mine = self.of(batch)
        loss, own, valid = mine.weighed(batch, samples, progress)
        every = self.parts.values()
        means = torch.cat([own if part is mine else own.new_zeros(len(part.terms)) for part in every])
        counts = [count for part in every for count in (valid if part is mine else [0.0] * len(part.terms))]
        return loss, means, counts

    def means(self, batch: Mapping[str, Any], progress: float = 0.0) -> dict[str, Tensor]:
        """The mean of each term of the batch's task by name."""
        return {f"{batch[TASK]}/{name}": mean for name, mean in self.of(batch).means(batch, progress).items()}

    def weights(self, progress: float) -> list[float]:
        """The weight of each term at this point of the training."""
        return [weight for part in self.parts.values() for weight in part.weights(progress)]

    def varying(self, progress: float) -> dict[str, float]:
        """The options of losses that a schedule moves: `temperature/trec/kd_ce`."""
        return {
            f"{option}/{task}/{name}": value
            for task, part in self.parts.items()
            for (option, name), value in ((key.split("/", 1), v) for key, v in part.varying(progress).items())
        }

    def predict(self, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        """The student's logits for the batch's task, and its labels; as `Objective.predict`."""
        return self.of(batch).predict(batch)

    def of(self, batch: Mapping[str, Any]) -> Objective:
        """The objective of a batch; raises ConfigError for a task that is not there."""
        if batch.get(TASK) not in self.parts:
            raise ConfigError([Problem("tasks", f"a batch is of {batch.get(TASK)!r}, which is no task")])
        return self.parts[batch[TASK]]


def cut(terms: Tensor, part: Objective) -> tuple[Tensor, Tensor]:
    """What is of the terms of a task, and what is of those that follow."""
    return terms[: len(part.terms)], terms[len(part.terms) :]
