"""The values of terms for the batch that a forward saw: each loss on what was tapped, or several in one walk of chunks.

D features, V classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from hookbrew.objective.align import Scope, Seen
from hookbrew.objective.chunk import Chunked, Side
from hookbrew.objective.given import Given
from hookbrew.objective.heads import Head
from hookbrew.objective.plan import Plan, chunked
from hookbrew.objective.sides import Selector
from hookbrew.objective.source import Source
from hookbrew.objective.term import Term, counted
from hookbrew.objective.tile import Walk, glimpse, related, walk
from hookbrew.objective.vector import Vector, weighted
from hookbrew.objective.view import View
from hookbrew.taps import Map, tether

Weights = Sequence[float | Tensor]
Weighed = tuple[Tensor, Tensor, list[float | Tensor]]
"""A loss, a scalar; means of the terms, detached, and what is valid for each, (terms,); numbers need no device."""


@attrs.define
class Group:
    """Terms that are computed in one walk: of one function, one pair of heads, one mask and one key of labels."""

    first: Term
    """One of them."""
    told: Chunked
    scope: Scope
    """What counts for all, whatever labels say."""
    teacher: Term | None = None
    """One that compares with a teacher."""
    labelled: Term | None = None
    """One that reads labels."""
    parts: dict[int, Any] = attrs.field(factory=dict)
    """What each tells the function, by its place among all terms."""

    def takes(self, term: Term, told: Chunked, scope: Scope) -> bool:
        """Whether another term can be computed with these."""
        same = [(self.first, "student")] + [(one, "teacher") for one in [self.teacher] if one and term.source.teachers]
        if self.labelled is not None and term.scope.labels not in (None, self.labelled.scope.labels):
            return False
        return (
            told.function is self.told.function
            and scope == self.scope
            and all(sides(one, side) == sides(term, side) for one, side in same)
        )

    def add(self, place: int, term: Term, told: Chunked) -> None:
        """Take one in."""
        self.parts[place] = told.part
        self.teacher = self.teacher or (term if term.source.teachers else None)
        self.labelled = self.labelled or (term if term.scope.labels is not None else None)


@attrs.define(slots=False)
class Values:
    """How terms are evaluated."""

    view: View
    given: Given
    output: Callable[[], Any] | None = None
    """What the student returned last, where a wrapper averages its gradients."""
    plan: Plan = attrs.field(factory=Plan)
    _valid: Vector = attrs.field(factory=Vector)
    _weights: Vector = attrs.field(factory=Vector)

    @property
    def heads(self) -> Mapping[tuple[str, str], Head]:
        """Of what is computed from hidden states, by model and source's path."""
        return self.plan.heads

    def read(self, model: str, path: str) -> Any:
        """What a source compares; in place of logits that are never made, zeros of their shape in the memory of one;
        of large maps of attention that of the first sample, in the shape of all."""
        maps = self.view.maps(model, path)
        if maps is not None:
            return [glimpse(one) for one in maps] if isinstance(maps, list) else glimpse(maps)
        tensor, head = self.view.read(model, path), self.heads.get((model, path))
        if head is None:
            return tensor
        return tensor.new_zeros(()).expand(*tensor.shape[:-1], head.module.out_features)

    def one(self, term: Term, seen: Seen, progress: float) -> tuple[Any, Tensor]:
        """The student's tensors of a term that the term's mean depends on, and that mean."""
        if self.heads and self.told(term, seen, progress) is not None:
            value, _ = self.walked([term], seen, progress, [1.0])
            tensor, head = self.view.read("student", term.source.path), self.heads["student", term.source.path]
            return [one for one in head.side(tensor) if one is not None], value
        able = self.view.tiled("student", term.source.path)
        if able and (tiled := self.tiled(term, seen, progress)) is not None:
            return tiled.student.leaves, tiled.value()
        student, *teachers = self.sides(term)
        return student, term.mean(self.given.roles(term, seen, student, teachers, progress), progress)

    def tiled(self, term: Term, seen: Seen, progress: float) -> Walk | None:
        """How a term that may be is computed by tiles; None where it is on whole tensors."""
        source = term.source
        student, *teachers = self.view.sides(source, term.pair, whole=False)
        if not isinstance(student, Map) and not related(source, student):
            return None
        return walk(term, student, teachers, seen.valid(source, term.scope), progress)

    def sides(self, term: Term) -> list[Any]:
        """What a term compares; of one that this batch does not let compute in chunks, the whole logits."""
        found = self.view.sides(term.source, term.pair)
        if not self.heads:
            return found
        heads = [self.heads.get((model, term.source.path)) for model in term.source.selectors]
        pairs = zip(found, heads, strict=True)
        return [one if head is None else functional.linear(*head.side(one)) for one, head in pairs]

    def counts(self, terms: Sequence[Term], seen: Seen, samples: int, device: torch.device) -> Tensor:
        """What is valid in a batch for each term, (terms,)."""
        return self._valid.of(counted(terms, seen, samples), device)

    def weighed(self, terms: Sequence[Term], seen: Seen, samples: int, progress: float) -> Weighed:
        """The weighted sum of the means, the means, and what they count. What was read is let go of."""
        if self.heads:
            loss, values = self.walked(terms, seen, progress, weights(terms, progress))
        else:
            values = [self.one(term, seen, progress)[1] for term in terms]
            loss = weighted(values, weights(terms, progress))
        self.view.forget()
        return self.tied(loss), detached(values), counted(terms, seen, samples)

    def part(
        self, terms: Sequence[Term], seen: Seen, valid: tuple[Tensor, Tensor], progress: float
    ) -> tuple[Tensor, Tensor]:
        """A batch's part of the loss of a step, a scalar, and its means, detached, (terms,); lets go of what was read.

        valid: counts of the batch and of the whole step, (terms,) each.
        """
        counts, totals = valid
        if self.heads:
            kind = torch.promote_types(next(iter(self.heads.values())).module.weight.dtype, torch.float32)
            shares = self._weights.of(weights(terms, progress), counts.device, kind) * counts / totals
            loss, values = self.walked(terms, seen, progress, shares.unbind())
            self.view.forget()
            return loss, detached(values)
        means = torch.stack([self.one(term, seen, progress)[1] for term in terms])
        self.view.forget()
        shares = self._weights.of(weights(terms, progress), means.device, means.dtype) / totals.to(means.dtype)
        return torch.dot(self.tied(means * counts), shares), means.detach()

    def sums(self, terms: Sequence[Term], seen: Seen, counts: Tensor, progress: float) -> Tensor:
        """The sum of each term over what is valid, (terms,)."""
        return self.tied(torch.stack([self.one(term, seen, progress)[1] for term in terms]) * counts)

    def tied(self, value: Tensor) -> Tensor:
        """A value from which backward comes by the student's output, where its wrapper waits for that."""
        return value if self.output is None else tether(value, self.output())

    def walked(
        self, terms: Sequence[Term], seen: Seen, progress: float, weights: Weights
    ) -> tuple[Tensor, list[Tensor]]:
        """The weighted sum of all means, in as few walks as can be, and each mean; only the sum has all gradients."""
        values, totals = dict[int, Tensor](), list[Tensor]()
        for group in self.groups(terms, seen, progress):
            total, each = self.walk(group, seen, [weights[place] for place in group.parts])
            totals.append(total)
            values |= dict(zip(group.parts, each.unbind(), strict=True))
        for place, (term, weight) in enumerate(zip(terms, weights, strict=True)):
            if place not in values:
                values[place] = self.one(term, seen, progress)[1]
                totals.append(values[place] * weight)
        return torch.stack(totals).sum(), [values[place] for place in range(len(terms))]

    def groups(self, terms: Sequence[Term], seen: Seen, progress: float) -> list[Group]:
        """The terms that are computed in chunks, in as few walks as can be."""
        groups = list[Group]()
        for place, term in enumerate(terms):
            if (told := self.told(term, seen, progress)) is not None:
                scope = term.scope._replace(counts="positions", marked=False, labels=None)
                group = next((one for one in groups if one.takes(term, told, scope)), None)
                if group is None:
                    groups.append(group := Group(term, told, scope))
                group.add(place, term, told)
        return groups

    def walk(self, group: Group, seen: Seen, weights: Weights) -> tuple[Tensor, Tensor]:
        """The weighted sum of a group, and each of its terms."""
        source, taught, labelled = group.first.source, group.teacher, group.labelled
        student = self.side("student", source, group.scope)
        teacher = None if taught is None else self.side(taught.source.teachers[0], taught.source, group.scope)
        labels = None if labelled is None else seen.valid(labelled.source, labelled.scope).labels
        mask = seen.valid(source, group.scope).mask
        try:
            return group.told.function(student, teacher, [*group.parts.values()], weights, mask=mask, labels=labels)
        except Exception as error:
            error.add_note(f"raised by {source}, in chunks of hidden states {tuple(student.hidden.shape)}")
            raise

    def side(self, model: str, source: Source, scope: Scope) -> Side:
        """Hidden states and head of a model, cut and shifted as its logits would be."""
        hidden, classes = self.view.read(model, source.path), self.given.names.classes
        side = self.heads[model, source.path].side(hidden, classes if isinstance(classes, int) else None)
        return side._replace(hidden=hidden[:, :-1]) if scope.shifted else side

    def told(self, term: Term, seen: Seen, progress: float) -> Chunked | None:
        """The chunked form of a term at this point of the training, for this batch; soft labels have none."""
        if ("student", term.source.path) not in self.heads:
            return None
        labels = seen.valid(term.source, term.scope).labels
        if labels is not None and labels.is_floating_point():
            return None
        return chunked(term.source.at(progress))


def detached(values: Sequence[Tensor]) -> Tensor:
    """Scalars without their graphs, in one tensor of their own."""
    return torch.stack([value.detach() for value in values])


def weights(terms: Sequence[Term], progress: float) -> list[float]:
    """The weight of each term at this point of the training."""
    return [term.source.weight.at(progress) for term in terms]


def sides(term: Term, side: str) -> tuple[str, Selector]:
    """Which model a term reads, the student or its teacher, and what of it."""
    name = "student" if side == "student" else term.source.teachers[0]
    return name, term.source.selectors[name]
