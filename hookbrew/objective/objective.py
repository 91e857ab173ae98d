"""The objective: a student, its teachers, their taps and the losses between them, as sums and counts by name.

A loss gives the mean over what is valid in one batch. The objective turns it into a sum again, so that
the loop can divide by what is valid in the whole optimizer step: k micro-batches then have the gradient
of one batch k times the size, however unevenly their padding lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hookbrew.config import Loss, Merge
from hookbrew.errors import ConfigError, Problem
from hookbrew.modes import evaluating, kept
from hookbrew.objective.align import Seen
from hookbrew.objective.given import Given, aligned
from hookbrew.objective.inputs import Inputs, Names, parted
from hookbrew.objective.measure import built, require_reach
from hookbrew.objective.plan import Plan, Wanted, planned
from hookbrew.objective.ranks import join
from hookbrew.objective.seat import Ask
from hookbrew.objective.source import sourced
from hookbrew.objective.teachers import Teachers, called, joined, labelled, require_order, unused
from hookbrew.objective.term import Term, learned
from hookbrew.objective.tokens import require_doubled
from hookbrew.objective.value import Values, Weighed, weights
from hookbrew.objective.view import View
from hookbrew.taps import resharded, synced


class Objective:
    """What is minimised.

    Construction resolves every selector; `measure` needs one batch, and finds sizes, shapes and whether
    each term can be computed. Both raise ConfigError with all that is wrong, before any training.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teachers,
        losses: Sequence[Loss],
        names: Names | None = None,
        *,
        merge: Merge | None = None,
        at: str = "",
    ) -> None:
        """at: where data, losses and teachers stand in the configuration, as `tasks.trec.`."""
        self.student, self.teachers, self._at = student, called(teacher), at
        self.teacher, self.names = joined(self.teachers), names or Names()
        if not losses:
            raise ConfigError([Problem(f"{at}losses", "there is none: nothing would be trained")])
        self.sources = sourced(losses, self.teachers, self.names, at)
        self.idle = unused(self.teachers, self.sources, at)
        self._busy = [name for name in self.teachers if name not in self.idle]
        self.ask: Ask | None = None
        """Answers for the teachers, which are then not run: with what was stored of them."""
        require_order(student, labelled(self.sources, merge or Merge()), self.names, at)
        self.terms: tuple[Term, ...] = ()
        self.plan = Plan()
        self.extras = nn.ModuleDict()
        """What is trained besides the student: projections and losses that learn."""
        self.outputs: tuple[Any, Any] = (None, None)
        """What student and teacher returned for the last batch; of several teachers by name. None if it was stopped."""
        kept = (*self.names.kept, self.names.index) if self.indexed else self.names.kept
        self._inputs = Inputs(kept, self.names.mask)
        self._shared = not {m for t in self.teachers.values() for m in t.modules()}.isdisjoint(student.modules())
        self.leaves = set[int]()  # ids of what a batch's loss reaches
        self._view = View(self.models, self.sources, self.names.logits, at)
        output = (lambda: self.outputs[0]) if synced(student) else None
        self._values = Values(self._view, Given(self.names, merge or Merge()), output)

    @property
    def parts(self) -> dict[str, Objective]:
        """Itself, as the one task that it is; `Tasks` has several."""
        return {"": self}

    @property
    def models(self) -> dict[str, nn.Module]:
        """Student and teachers by name."""
        return {"student": self.student, **self.teachers}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks are on the models inside, and gone outside, whatever happens. Teachers are in
        evaluation mode, and every module's own mode comes back."""
        with ExitStack() as stack:
            for model in (*self.models.values(), self.extras):
                stack.callback(resharded, model)
            stack.enter_context(self._view.attached())
            stack.enter_context(kept(self.student, self.teacher))
            stack.callback(setattr, self, "outputs", (None, None))
            if self.teacher is not None:
                self.teacher.eval()
            yield

    def measure(self, batch: Mapping[str, Any], *, stop: bool = True, chunked: Wanted = "auto") -> None:
        """Pass one batch through all models, build what depends on sizes, and refuse what cannot work.

        stop: let later forwards of a teacher end with the last tensor that a loss reads, if none reads its output.
        chunked: as `planned`.
        Weights, modes and random states stay as they are. Raises ConfigError, DataError.
        """
        self._inputs.settle(self.models, batch)
        require_doubled(batch, self.names, self._at)
        inputs = partial(self._inputs.of, batch=batch)
        with evaluating(self.student, self.teacher):
            self.plan = self._values.plan = planned(chunked, self.sources, self.models, inputs, self.names)
            self._view.prepare(self.plan.selectors, inputs, stop=stop)
            self.forward(batch)
        terms = self.terms or built(self.sources, self._values.read, batch, self.names)
        self.extras.update(learned(terms))
        with kept(self.extras):
            self.extras.eval()  # a loss that remembers samples learns nothing from a look
            seen = Seen(batch)
            self.leaves = require_reach(terms, lambda term: self._values.one(term, seen, 0.0))
        if not self.terms:
            join(self.extras, self.student)  # some losses have parameters only since they were evaluated
            self.terms = terms

    def forward(self, batch: Mapping[str, Any]) -> None:
        """Run all models on a batch, the teachers without gradient, and keep what the taps see."""
        self._view.forget()
        self.outputs, outputs = (None, None), {}
        with torch.set_grad_enabled(False), kept(self.teacher) if self._shared else nullcontext():
            if self._shared and self.teacher is not None:  # what the student trains is in training mode, for them too
                self.teacher.eval()
            for who in self._busy:
                outputs[who] = self.ask(who, batch) if self.ask else self._view.run(who, self._inputs.of(who, batch))
        theirs = next(iter(outputs.values()), None) if len(self.teachers) < 2 else outputs
        self.outputs = (self._view.run("student", self._inputs.of("student", batch)), theirs)

    def counts(self, batch: Mapping[str, Any], samples: int, device: torch.device) -> Tensor:
        """What is valid in a batch for each term, (terms,): positions, pairs or samples; known before any forward."""
        return self._values.counts(self.terms, Seen(batch), samples, device)

    def weighed(self, batch: Mapping[str, Any], samples: int, progress: float) -> Weighed:
        """For a batch that is a whole step: the weighted sum of its means, the means and their counts."""
        return self._values.weighed(self.terms, Seen(batch), samples, progress)

    def part(self, batch: Mapping[str, Any], counts: Tensor, totals: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """For a batch that is a part of a step: its part of the loss, a scalar, and its means, detached, (terms,).

        totals: what is valid for each term in the whole step, at least 1, (terms,).
        """
        return self._values.part(self.terms, Seen(batch), (counts, totals), progress)

    def sums(self, batch: Mapping[str, Any], counts: Tensor, progress: float = 0.0) -> Tensor:
        """The sum over valid positions of each term for the batch that `forward` saw, (terms,)."""
        return self._values.sums(self.terms, Seen(batch), counts, progress)

    def means(self, batch: Mapping[str, Any], progress: float = 0.0) -> dict[str, Tensor]:
        """The mean of each term by name, unweighted, for the batch that `forward` saw."""
        seen = Seen(batch)
        return {term.name: self._values.one(term, seen, progress)[1] for term in self.terms}

    def received(self, model: str) -> tuple[str, ...]:
        """The keys of a batch that the student or a teacher gets, by its name; known after `measure`."""
        return self._inputs.keys[model]

    def described(self, term: Term) -> str:
        """What a term compares: canonical paths of its tensors."""
        return self._view.described(term.source, term.pair)

    @property
    def stops(self) -> dict[str, str]:
        """The path at which forwards of a model end, by its name, of those that end before their output."""
        return self._view.last

    @property
    def indexed(self) -> bool:
        """Whether a loss asks for the number of each sample."""
        return any("index" in source.roles for source in self.sources)

    def weights(self, progress: float) -> list[float]:
        """The weight of each term at this point of the training."""
        return weights(self.terms, progress)

    def varying(self, progress: float) -> dict[str, float]:
        """The options of losses that a schedule moves, at this point of the training: `temperature/kd_ce`."""
        moved = [(source, source.values(progress)) for source in self.sources]
        return {f"{option}/{source.name}": value for source, values in moved for option, value in values.items()}

    def predict(self, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        """The student's logits for a batch, and its labels or None, as losses compare them; lists where there are
        several. Raises SelectorError when its output has no logits, ConfigError where they may be a token off."""
        logits, labels = aligned(
            self._view.logits(self._inputs.of("student", batch)), parted(batch, "student"), self.names
        )
        if labels is not None:
            found = logits if isinstance(logits, list) else [logits]
            readers = ["the evaluation"] if any(tensor.dim() == 3 for tensor in found) else []
            require_order(self.student, readers, self.names, self._at)
        return logits, labels
