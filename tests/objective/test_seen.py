"""What several losses need of a batch is made once for all of them, and never kept from one call to the next."""

import pytest
import torch

import hookbrew as hb
from tests.operations import Operations

CPU = torch.device("cpu")
LAYERS = {"student": "blocks[*]", "teacher": "blocks[*]"}
TABLES = [
    hb.loss("hidden_mse", projection="linear", **LAYERS),
    hb.loss("cos", projection="linear", **LAYERS),
    hb.loss("kd_ce"),
    hb.loss("kl"),
]


@pytest.fixture
def counted(tagger, batches, objective):
    """counted(tables): the operations of `counts`, and the counts."""
    (batch,) = batches([4, 2, 3])

    def make(tables):
        made = objective(tagger(8, pooled=False), tagger(12, pooled=False), tables, batch)
        with Operations() as seen:
            counts = made.counts(batch, 3, CPU)
        return seen.names, counts.tolist()

    return make


def test_losses_of_one_scope_are_counted_once(counted):
    one, counts = counted(TABLES[2:3])
    assert counts == [9]
    all_of_them, counts = counted(TABLES)
    assert counts == [9] * 6
    assert all_of_them == one
    assert one.count("sum") == 1


def test_a_mask_that_a_callback_changes_is_read_again(tagger, batches, objective):
    (batch,) = batches([4, 2, 3])
    made = objective(tagger(8, pooled=False), tagger(12, pooled=False), TABLES, batch)
    shorter = {**batch, "attention_mask": batch["attention_mask"].clone()}
    shorter["attention_mask"][:, 1:] = 0
    with made.attached():
        made.counts(batch, 3, CPU)
        made.forward(batch)
        before, expected = made.means(batch), made.means(shorter)
        batch["attention_mask"][:, 1:] = 0
        after = made.means(batch)
    assert [mean.item() for mean in after.values()] == [mean.item() for mean in expected.values()]
    assert all(after[name].item() != before[name].item() for name in before)


def test_losses_with_one_selector_get_one_tensor(tagger, batches, objective):
    (batch,) = batches([4, 2, 3])
    aliased = {"student": "hidden[1:]", "teacher": "hidden[1:]", "projection": "linear"}
    tables = [*TABLES, hb.loss("hidden_mse", **aliased)]
    made = objective(tagger(8, pooled=False), tagger(12, pooled=False), tables, batch)
    with made.attached():
        made.forward(batch)
        read = [made._view.read("student", source.path) for source in made.sources]
    assert read[2] is read[3]
    assert read[0] is read[1]
    assert read[4] is not read[0]
