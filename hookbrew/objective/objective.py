"""The objective: two models, their taps and the losses between them, as sums and counts by name.

A loss gives the mean over what is valid in one batch. The objective turns it into a sum again, so that
the loop can divide by what is valid in the whole optimizer step: k micro-batches then have the gradient
of one batch k times the size, however unevenly their padding lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hookbrew.config import Loss
from hookbrew.errors import ConfigError, DataError, Problem
from hookbrew.modes import evaluating, kept
from hookbrew.objective.align import count, valid
from hookbrew.objective.inputs import Names, accepted, keyword_parameters
from hookbrew.objective.measure import require_reach, termed
from hookbrew.objective.ranks import join
from hookbrew.objective.source import collected, sourced
from hookbrew.objective.term import Term
from hookbrew.objective.view import View
from hookbrew.taps import resharded, synced, tether


class Objective:
    """What is minimised.

    Construction resolves every selector; `measure` needs one batch, and finds sizes, shapes and whether
    each term can be computed. Both raise ConfigError with all that is wrong, before any training.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module | None, losses: Sequence[Loss], names: Names | None = None
    ) -> None:
        self.student, self.teacher = student, teacher
        self.names = names or Names()
        if not losses:
            raise ConfigError([Problem("losses", "there is none: nothing would be trained")])
        self.sources = sourced(losses, taught=teacher is not None)
        if teacher is not None and not any(source.compares for source in self.sources):
            raise ConfigError([Problem("teacher", "no loss compares with it, so nothing would be learned from it")])
        self.terms: tuple[Term, ...] = ()
        self.extras = nn.ModuleDict()
        """What is trained besides the student: projections and losses that learn."""
        self.outputs: tuple[Any, Any] = (None, None)
        """What student and teacher returned for the last batch."""
        self._inputs: dict[str, tuple[str, ...]] = {}
        self._spare: dict[str, Set[str]] = {}
        """Parameters of the models that the first batch had nothing for."""
        self._shared = teacher is not None and not set(teacher.modules()).isdisjoint(student.modules())
        self._synced = synced(student)
        models = {"student": student, "teacher": teacher}
        self._view = View({side: model for side, model in models.items() if model is not None}, self.sources)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks are on the models inside, and gone outside, whatever happens. The teacher is in
        evaluation mode, and every module's own mode comes back."""
        with ExitStack() as stack:
            for model in (self.student, self.teacher, self.extras):
                if model is not None:
                    stack.callback(resharded, model)
            stack.enter_context(self._view.attached())
            stack.enter_context(kept(self.student, self.teacher))
            stack.callback(setattr, self, "outputs", (None, None))
            if self.teacher is not None:
                self.teacher.eval()
            yield

    def measure(self, batch: Mapping[str, Any], *, stop: bool = True) -> None:
        """Pass one batch through both models, build what depends on sizes, and refuse what cannot work.

        stop: let later forwards of the teacher end with the last tensor that a loss reads, if none reads its output.
        Weights, modes and random states stay as they are. Raises ConfigError, DataError.
        """
        for side, model in (("student", self.student), ("teacher", self.teacher)):
            if model is not None:
                self._inputs[side] = accepted(model, batch, self.names.labels)
                self._spare[side] = keyword_parameters(model).keys() - {*batch, self.names.labels}
        with evaluating(self.student, self.teacher):
            self._view.settle(partial(self.inputs, batch=batch))
            self._view.stop(allowed=stop)
            self.forward(batch)
        if not self.terms:
            terms = self._build(batch)
            join(self.extras, self.student)
            self.terms = terms
        require_reach(self.terms, partial(self._evaluated, batch=batch))

    def forward(self, batch: Mapping[str, Any]) -> None:
        """Run both models on a batch, the teacher without gradient, and keep what the taps see."""
        teacher_out = None
        if self.teacher is not None:
            with torch.no_grad(), kept(self.teacher if self._shared else None):
                if self._shared:  # what the student trains is in training mode, for the teacher too
                    self.teacher.eval()
                teacher_out = self._view.run("teacher", self.inputs("teacher", batch))
        self.outputs = (self._view.run("student", self.inputs("student", batch)), teacher_out)

    def inputs(self, side: str, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a batch that goes into the student or the teacher."""
        for key in self._inputs[side]:
            if key not in batch:
                raise DataError(f"the {side} gets {key!r}, which the first batch had and this one lacks")
        for key in self._spare[side] & batch.keys():
            raise DataError(f"the {side} takes {key!r}, which this batch has and the first one lacked")
        return {key: batch[key] for key in self._inputs[side]}

    def counts(self, batch: Mapping[str, Any], samples: int, device: torch.device) -> Tensor:
        """What is valid in a batch for each term, (terms,): positions, pairs or samples; known before any forward."""
        masks = [valid(term.source, term.scope, batch, self.names)[0] for term in self.terms]
        found = zip(self.terms, masks, strict=True)
        return torch.stack([count(mask, term.scope.counts, samples, device) for term, mask in found])

    def sums(self, batch: Mapping[str, Any], counts: Tensor) -> Tensor:
        """The sum over valid positions of each term for the batch that `forward` saw, (terms,)."""
        sums = torch.stack(self._means(batch)) * counts
        return tether(sums, self.outputs[0]) if self._synced else sums

    def means(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The mean of each term by name, unweighted, for the batch that `forward` saw."""
        return {term.name: mean for term, mean in zip(self.terms, self._means(batch), strict=True)}

    def received(self, side: str) -> tuple[str, ...]:
        """The keys of a batch that the student or the teacher gets; known after `measure`."""
        return self._inputs[side]

    def described(self, term: Term) -> str:
        """What a term compares: canonical paths of its tensors."""
        return self._view.described(term.source, term.pair)

    @property
    def stop(self) -> str | None:
        """The path of the module at which forwards of the teacher end; None if they go on to its output."""
        return self._view.last

    def weights(self, progress: float) -> list[float]:
        """The weight of each term at this point of the training."""
        return [term.source.weight.at(progress) for term in self.terms]

    def predict(self, batch: Mapping[str, Any]) -> Tensor:
        """The student's logits for a batch; raises SelectorError when its output has none."""
        self._view.run("student", self.inputs("student", batch))
        return self._view.logits()

    @property
    def labels(self) -> str:
        """The key of the batch that holds the labels."""
        return self.names.labels

    def _means(self, batch: Mapping[str, Any]) -> list[Tensor]:
        return [self._evaluated(term, batch)[1] for term in self.terms]

    def _evaluated(self, term: Term, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The student's tensor of a term, and the term's mean."""
        student = term.pick(self._view.read("student", term.source.path))
        teacher = term.pick(self._view.read("teacher", term.source.path)) if term.source.compares else None
        mask, labels = valid(term.source, term.scope, batch, self.names)
        return student, term.mean(student, teacher, mask, labels)

    def _build(self, batch: Mapping[str, Any]) -> tuple[Term, ...]:
        terms, problems = list[Term](), list[Problem]()
        for source in self.sources:
            with collected(problems, source.path):
                student = self._view.read("student", source.path)
                teacher = self._view.read("teacher", source.path) if source.compares else None
                terms += termed(source, student, teacher, batch, self.names)
        if problems:
            raise ConfigError(problems)
        for term in terms:
            for module in (term.projection, term.source.function):
                if isinstance(module, nn.Module):
                    self.extras[f"{term.name}/{type(module).__name__}".replace(".", "_")] = module
        return tuple(terms)
