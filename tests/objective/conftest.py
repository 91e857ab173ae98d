"""Objectives of tiny models, and what the loop does with them, by hand."""

from itertools import pairwise

import pytest
import torch

from hookbrew.config import Merge, structure_loss
from hookbrew.objective import Names, Objective


@pytest.fixture(scope="session")
def objective(pack):
    """objective(student, teacher, tables, batch=None, merge=None, **names): measured on the batch, if there is one."""

    def make(student, teacher, tables, batch=None, *, merge=None, **names):
        losses = [structure_loss(table.table, pack) for table in tables]
        made = Objective(student, teacher, losses, Names(**names), merge=Merge(**(merge or {})))
        if batch is not None:
            with made.attached():
                made.measure(batch)
        return made

    return make


def stepped(made, batches, samples=None, progress=0.0):
    """The loop's reduction: each term's mean over all that counts in the batches, detached, and the gradients."""
    made.student.zero_grad()
    made.extras.zero_grad()
    device = torch.device("cpu")
    with made.attached():
        counts = [made.counts(b, samples or len(next(iter(b.values()))), device) for b in batches]
        total = sum(counts).clamp(min=1)
        means = torch.zeros(len(made.terms), dtype=torch.float64)
        for batch, valid in zip(batches, counts, strict=True):
            made.forward(batch)
            parts = made.sums(batch, valid, progress) / total
            parts.sum().backward()
            means += parts.detach().double()
    trained = [*made.student.parameters(), *made.extras.parameters()]
    return means, torch.cat([p.grad.flatten().double() for p in trained if p.grad is not None])


@pytest.fixture(scope="session")
def step():
    return stepped


@pytest.fixture(scope="session")
def split():
    """split(batch): the same samples in three uneven batches."""

    def make(batch):
        size = len(next(iter(batch.values())))
        cuts = [0, 1, size // 2, size]
        return [{k: v[a:b] for k, v in batch.items()} for a, b in pairwise(cuts)]

    return make
