"""What a look at small tensors saves is work: never a number."""

import attrs
import pytest
import torch

import hookbrew as hb
import hookbrew_plugins
from hookbrew.config import structure_loss
from hookbrew.objective import Objective, glance
from hookbrew.objective.align import Valid, count
from hookbrew.objective.glance import FEW, MOST
from hookbrew.plugin import catalogue, hookimpl
from hookbrew_plugins.losses import ce, kd_ce, kl

LAYERS = {"student": "blocks[*]", "teacher": "blocks[*]"}
TABLES = [
    hb.loss("hidden_mse", projection="linear", **LAYERS),
    hb.loss("kd_ce"),
    hb.loss("ce"),
    hb.loss("cos", projection="linear", student="blocks[1]", teacher="blocks[1]"),
]


def named(pooled):
    """The key of the labels: one for each sample, or for each token."""
    return "labels" if pooled else "tags"


@pytest.fixture
def unseen(monkeypatch):
    """unseen(): from now on nothing is looked at, as on a GPU."""

    def blind():
        for module in ("hookbrew.objective.align", "hookbrew_plugins.losses.labels", "hookbrew_plugins.losses.soften"):
            monkeypatch.setattr(f"{module}.glance", lambda tensor: None)

    return blind


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("lengths", [[4, 4, 4], [4, 2, 3]], ids=["full", "padded"])
def test_looking_changes_nothing(tagger, batches, objective, step, unseen, lengths, pooled):
    batch = batches(lengths)[0]
    tables = TABLES if not pooled else TABLES[1:3]
    made = objective(
        tagger(8, pooled=pooled).double(), tagger(12, pooled=pooled).double(), tables, batch, labels=named(pooled)
    )
    seen = step(made, [batch])
    unseen()
    blind = step(made, [batch])
    for ours, theirs in zip(seen, blind, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("pooled", [False, True])
def test_a_full_batch_beside_a_padded_one(tagger, batches, objective, step, pooled):
    """Positions of both count alike, although the mask of the one is left out."""
    full, padded = batches([4, 4], [2, 4, 1])
    both = {key: torch.cat([full[key], padded[key]]) for key in full}
    made = objective(
        tagger(8, pooled=pooled).double(), tagger(12, pooled=pooled).double(), TABLES[1:3], both, labels=named(pooled)
    )
    for ours, theirs in zip(step(made, [full, padded]), step(made, [both]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("lengths", [[4, 4, 4], [4, 2, 3]], ids=["full", "padded"])
@pytest.mark.parametrize("tables", [TABLES, [hb.loss("kd_ce", weight=0.25)]], ids=["all", "weight"])
def test_a_step_of_one_batch_is_that_of_any_number(tagger, batches, objective, step, tables, lengths):
    """Weighted means, and weights by sums over counts, are one loss with one gradient."""
    (batch,) = batches(lengths)
    made = objective(tagger(8, pooled=False).double(), tagger(12, pooled=False).double(), tables, batch, labels="tags")
    means, gradient = step(made, [batch])
    made.student.zero_grad()
    made.extras.zero_grad()
    with made.attached():
        made.forward(batch)
        loss, found, _ = made.weighed(batch, len(lengths), 0.0)
        loss.backward()
    weights = torch.tensor(made.weights(0.0), dtype=torch.float64)
    torch.testing.assert_close(found, means, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(loss.detach(), torch.dot(weights, means), rtol=1e-12, atol=1e-14)
    ours = torch.cat([p.grad.flatten() for p in (*made.student.parameters(), *made.extras.parameters())])
    torch.testing.assert_close(ours, gradient * weights[0], rtol=1e-12, atol=1e-14)


@attrs.frozen
class Wanting:
    """A loss whose mask has no default."""

    def build(self):
        """The loss."""
        return lambda student, teacher, mask: (student - teacher).square().mean(-1)[mask].mean()


@pytest.fixture
def wanting():
    """The pack, and a plugin with that loss."""

    class Plugin:
        @hookimpl
        def hookbrew_register_losses(self, register):
            register("wanting", Wanting)

    return catalogue(discover=False, plugins=[hookbrew_plugins, Plugin()])


@pytest.mark.parametrize("lengths", [[3, 3], [3, 1]], ids=["full", "padded"])
def test_a_loss_that_wants_its_mask_gets_it(tagger, batches, wanting, lengths):
    """A function without a default for its mask is called with one, also where it leaves nothing out."""
    (batch,) = batches(lengths)
    (loss,) = [structure_loss(hb.loss("wanting").table, wanting)]
    made = Objective(tagger(8, pooled=False), tagger(12, pooled=False), [loss])
    with made.attached():
        made.measure(batch)
        made.forward(batch)
        (mean,) = made.means(batch).values()
        student, teacher = made.outputs
    mask = batch["attention_mask"].bool()
    assert mean.item() == pytest.approx((student - teacher).square().mean(-1)[mask].mean().item())


@pytest.mark.parametrize("counts", ["positions", "pairs", "samples"])
@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 0)], ids=str)
def test_a_mask_that_is_not_there_counts_as_a_full_one(counts, shape):
    """Also where no token has a next one, and so nothing is left."""
    full = torch.ones(shape, dtype=torch.bool)
    known = Valid(labels=None, mask=None, shape=full.shape)
    assert known.count(counts, 3) == count(full, counts, 3, torch.device("cpu")).item()


@pytest.mark.parametrize("loss", [kd_ce, kl])
def test_classes_that_are_ruled_out(loss):
    """-inf on both sides adds nothing, whatever was looked at; on the student's side alone it is infinite."""
    student = torch.tensor([[1.0, 2.0, -torch.inf], [0.5, 0.1, -torch.inf]], requires_grad=True)
    teacher = torch.tensor([[2.0, 0.5, -torch.inf], [0.2, 1.0, -torch.inf]])
    both = loss(student, teacher)
    both.backward()
    torch.testing.assert_close(both, loss(student[:, :2], teacher[:, :2]))
    assert student.grad.isfinite().all()
    assert loss(student, teacher.masked_fill(teacher.isinf(), 0.0)).isinf()


def test_a_row_without_a_label_may_hold_anything():
    logits = torch.tensor([[1.0, 2.0], [torch.nan, torch.inf]], requires_grad=True)
    found = ce(logits, torch.tensor([1, -100]))
    found.backward()
    torch.testing.assert_close(found, ce(logits[:1], torch.tensor([1])))
    assert logits.grad[1].tolist() == [0, 0]


@pytest.mark.parametrize("size", [1, FEW, FEW + 1, MOST])
def test_what_is_seen(size):
    numbers = torch.ones(size, dtype=torch.long)
    assert 0 not in glance(numbers)
    numbers[-1] = 0
    assert 0 in glance(numbers)
    assert 0 in glance(numbers.view(1, -1))


def test_what_is_not_looked_at():
    assert glance(torch.ones(MOST + 1)) is None
    assert glance(torch.ones(0)) is None
    assert glance(torch.ones(3, device="meta")) is None
    assert torch.vmap(lambda row: row * (2 if glance(row) is None else 3))(torch.ones(2, 2)).tolist() == [[2, 2]] * 2
    assert glance(torch.tensor(2.0, requires_grad=True)) == 2
