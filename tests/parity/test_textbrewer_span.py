"""A model with several logits: a run of TextBrewer and the same one here."""

import copy

import pytest
import torch

import hookbrew as hb


class Heard:
    """The loss of each step."""

    def __init__(self):
        self._losses = []

    def loss_end(self, state):
        self._losses.append(state.loss.item())


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


class Span(torch.nn.Module):
    """Scores where a span begins and where it ends, (B, L) each."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(20, 8)
        self.begin, self.end = torch.nn.Linear(8, 1), torch.nn.Linear(8, 1)

    def forward(self, input_ids):
        hidden = self.embed(input_ids)
        return self.begin(hidden).squeeze(-1), self.end(hidden).squeeze(-1)


def test_losses_of_several_logits_are_added(brewed, batches):
    """Where a span begins and ends: one loss each, and their sum."""
    data = [{"input_ids": batch["input_ids"]} for batch in batches((4, 4), (3, 3))]
    torch.manual_seed(7)
    teacher, student = Span(), Span()
    twin = copy.deepcopy(student)
    distiller, scalars = brewed(teacher, student, lambda batch, outputs: {"logits": list(outputs)}, temperature=4)
    with distiller:
        distiller.train(sgd(student), data, num_epochs=1)
    heard = Heard()
    losses = [hb.loss("kd_ce", temperature=4, t_squared=False)]
    distillation = hb.Distillation(teacher, twin, losses, logits=[":out[0]", ":out[1]"])
    distillation.fit(data, epochs=1, optimizer=sgd(twin), callbacks=[heard])
    assert heard._losses == pytest.approx(scalars["total_loss"], abs=1e-6)
