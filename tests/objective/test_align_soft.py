"""Soft labels count as the hard ones that they were made of: as many samples, with the same gradient."""

from __future__ import annotations

import pytest
import torch

import hookbrew as hb
from hookbrew.config import structure_loss
from hookbrew.objective import Names, Objective


def softened(batch, key):
    """The batch with a row for each label, zeros for -100."""
    labels = batch[key]
    rows = torch.nn.functional.one_hot(labels.clamp(min=0), 3) * (labels >= 0).unsqueeze(-1)
    return {**batch, key: rows.double()}


def gradient(objective, batches):
    """That of the sums of all micro-batches, over all that counts in them."""
    objective.student.zero_grad()
    with objective.attached():
        counts = [objective.counts(b, len(b["labels"]), torch.device("cpu")) for b in batches]
        for batch, valid in zip(batches, counts, strict=True):
            objective.forward(batch)
            (objective.sums(batch, valid) / sum(counts)).sum().backward()
    return [count.tolist() for count in counts], torch.cat([p.grad.flatten() for p in objective.student.parameters()])


@pytest.mark.parametrize("first", ["hard", "soft"])
@pytest.mark.parametrize("pooled", [True, False])
def test_soft_labels_count_as_hard_ones(tagger, batches, pack, pooled, first):
    """Sizes may be measured on the hard ones, of which an augmentation makes soft ones later."""
    key = "labels" if pooled else "tags"
    student = tagger(8, pooled=pooled).double()
    made = batches([5, 2, 3], [4, 4])
    made[0][key][0] = made[1][key][1] = -100
    hard, soft = made, [softened(batch, key) for batch in made]
    objective = Objective(student, None, [structure_loss(hb.loss("ce", labels=key).table, pack)], Names())
    with objective.attached():
        objective.measure(hard[0] if first == "hard" else soft[0])
    assert objective.terms[0].scope.marked
    counts, expected = gradient(objective, hard)
    found, slope = gradient(objective, soft)
    assert found == counts == ([[2.0], [1.0]] if pooled else [[5.0], [4.0]])
    assert torch.allclose(slope, expected, rtol=0, atol=1e-12)


def test_numbers_that_are_no_soft_labels_take_no_sample_out(tagger, batches, pack):
    """Of classes that do not exclude each other, none at all may be the truth."""
    (batch,) = batches([5, 2, 3])
    objective = Objective(tagger(8), None, [structure_loss(hb.loss("bce").table, pack)], Names())
    zeros = {**batch, "labels": torch.zeros(3, 3)}
    with objective.attached():
        objective.measure(zeros)
    assert objective.counts(zeros, 3, torch.device("cpu")).tolist() == [3.0]
