"""How right a model is, how sure of it, and how often it says what the first model says.

N places: samples, or tokens that are no padding. C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from hookbrew.objective import Names, hard
from hookbrew.objective.align import IGNORED
from hookbrew.objective.given import aligned

BINS = 15
CHUNK = 2**24
"""So many numbers of logits are looked at in one go: those of a vocabulary are many."""


@attrs.frozen
class Bin:
    """The places at which a model is about equally sure."""

    count: int
    confidence: float
    """The mean probability of what it says."""
    accuracy: float


@attrs.frozen(kw_only=True)
class Quality:
    """What a model comes to on the data; None where there are no labels, or no model to agree with."""

    labelled: int
    """Places that have a label."""
    accuracy: float | None
    loss: float | None
    """The mean cross-entropy, in nats."""
    perplexity: float | None
    """exp(loss), of a model of the next token."""
    ece: float | None
    """sum_m |B_m| / N |accuracy(B_m) - confidence(B_m)| over 15 equal bins (m - 1, m] / 15 of the confidence: the
    expected calibration error of Guo, Pleiss, Sun, Weinberger 2017, On Calibration of Modern Neural Networks, eq. 3."""
    agreement: float | None
    """The share of places at which it says what the first model says (top-1 agreement: Stanton et al. 2021, Does
    Knowledge Distillation Really Work?, section 2)."""
    compared: int
    """Places of the agreement: those with a label, or all that are no padding where no place has one."""
    bins: tuple[Bin, ...]
    """Those of the calibration error, from unsure to sure."""


@attrs.frozen
class Answer:
    """What a model says of one batch: at each place a row of logits."""

    logits: Tensor
    """(..., C)"""
    labels: Tensor
    """(...), -100 where there is none."""
    there: Tensor
    """(...), bool: what the mask leaves."""

    @property
    def said(self) -> Tensor:
        """The class of each place, (...)."""
        return self.logits.argmax(dim=-1)


def answers(logits: list[Tensor], own: Mapping[str, Any], names: Names, who: str) -> Iterator[Answer]:
    """The answers of a batch, one for each tensor of logits, aligned with labels and mask as losses and the evaluation
    have them.

    own: what the batch has for the model. Raises DataError for labels that do not fit.
    """
    found, labels = aligned(logits, own, names)
    # places are those at which a label would count if there were one
    zeros = [torch.zeros(raw.shape[:-1], dtype=torch.long, device=raw.device) for raw in logits]
    _, places = aligned(logits, {**own, **dict(zip(names.kept, zeros, strict=False))}, names)
    for number, (rows, place) in enumerate(zip(found, places, strict=True)):
        there = place != IGNORED
        told = torch.full_like(place, IGNORED) if labels is None else hard(rows, labels[number], who)
        yield Answer(rows, told.masked_fill(~there, IGNORED), there)


@attrs.define
class Tally:
    """Sums over all batches, in float64."""

    loss: float = 0.0
    right: int = 0
    labelled: int = 0
    agreed: list[int] = attrs.field(factory=lambda: [0, 0])
    """At places with a label, and at all."""
    compared: list[int] = attrs.field(factory=lambda: [0, 0])
    sure: Tensor = attrs.field(factory=lambda: torch.zeros(3, BINS, dtype=torch.float64))
    """Of each bin: places, the sum of their confidence, and how many are right."""

    def add(self, answer: Answer) -> None:
        """Count the places that have a label."""
        known = answer.labels != IGNORED
        rows, labels = answer.logits[known], answer.labels[known]
        self.labelled += len(labels)
        step = max(1, CHUNK // max(1, rows.shape[-1]))
        for start in range(0, len(labels), step):
            self._count(rows[start : start + step], labels[start : start + step])

    def _count(self, rows: Tensor, labels: Tensor) -> None:
        logs = torch.log_softmax(rows if rows.dtype == torch.float64 else rows.float(), dim=-1)
        self.loss -= float(logs.gather(-1, labels[:, None]).sum(dtype=torch.float64))
        highest, said = logs.max(dim=-1)
        confidence, right = highest.double().exp().cpu(), (said == labels).cpu()
        self.right += int(right.sum())
        place = ((confidence * BINS).ceil().long() - 1).nan_to_num(0).clamp(0, BINS - 1)
        for row, values in enumerate((torch.ones_like(confidence), confidence, right.double())):
            self.sure[row].index_add_(0, place, values)

    def agree(self, answer: Answer, first: Answer) -> None:
        """Count where it says what the first model says; both have the same places."""
        same = answer.said == first.said
        both = answer.there & first.there
        for number, places in enumerate((both & (answer.labels != IGNORED), both)):
            self.compared[number] += int(places.sum())
            self.agreed[number] += int((same & places).sum())

    def quality(self, *, causal: bool) -> Quality:
        """What it comes to."""
        n = self.labelled
        which = 0 if n else 1
        compared = self.compared[which]
        loss = self.loss / n if n else None
        count, confidence, right = self.sure
        return Quality(
            labelled=n,
            accuracy=self.right / n if n else None,
            loss=loss,
            perplexity=exp(loss) if causal and loss is not None else None,
            ece=float((right - confidence).abs().sum() / n) if n else None,
            agreement=self.agreed[which] / compared if compared else None,
            compared=compared,
            bins=tuple(
                Bin(int(k), float(c / k), float(r / k)) if k else Bin(0, math.nan, math.nan)
                for k, c, r in zip(count.tolist(), confidence.tolist(), right.tolist(), strict=True)
            ),
        )


def exp(value: float) -> float:
    """e to that power; infinity where no float holds it."""
    return math.exp(value) if value < 700 else math.inf
