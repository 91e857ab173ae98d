"""Options of losses that a schedule moves, and the numbers of samples for losses that remember them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hookbrew as hb
from hookbrew.config import structure_loss
from hookbrew.errors import ConfigError
from hookbrew.loop import Loader, Pad
from hookbrew.objective import Objective
from hookbrew.plugin import catalogue, hookimpl, options


def message(call, kind=ConfigError):
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def decaying(base, kind="linear_decay", **rest):
    return {"type": kind, "base": base, **rest}


def kl(student, teacher, temperature):
    p, q = ((one.detach().double() / temperature).softmax(-1) for one in (teacher, student))
    return float((p * (p.log() - q.log())).sum(-1).mean() * temperature**2)


@pytest.mark.parametrize("rest", [{}, {"base": 3.0}, {"base": 0.3, "end": 0.5}])
def test_a_schedule_of_python_is_its_table(pack, rest):
    """For the weight and for a number of the loss alike, with a base and without."""
    made, table = hb.schedule("cosine", **rest), {"type": "cosine", **rest}
    found = structure_loss(hb.loss("kl", weight=made, temperature=made).table, pack)
    assert found == structure_loss(hb.loss("kl", weight=table, temperature=table).table, pack)
    assert found.weight.base == rest.get("base", 1.0)
    assert found.varying["temperature"].base == rest.get("base", 4.0)
    assert found.weight.schedule.type == found.varying["temperature"].schedule.type == "cosine"


def test_what_is_no_schedule_of_a_number(pack):
    mistakes = {
        "loss 'kl': weight: expected a number or a table, got a Request": {"weight": hb.loss("ce")},
        "loss 'kl': weight.bsae: unknown key; did you mean 'base'?": {"weight": hb.schedule("cosine", bsae=2)},
        "loss 'kl': temperature.type: no schedule called 'cosin'; did you mean 'cosine'?": {
            "temperature": hb.schedule("cosin")
        },
        "loss 'kl': projection.type: no projection called 'cosine'; 'cosine' is a schedule": {
            "projection": hb.schedule("cosine")
        },
    }
    for expected, table in mistakes.items():
        assert message(lambda table=table: structure_loss(hb.loss("kl", **table).table, pack)) == expected


def test_schedules_of_python_move_a_run(tagger, batches, pack):
    (batch,) = batches([4, 2, 3])
    falling = hb.schedule("linear_decay", base=8)
    table = hb.loss("kl", weight=hb.schedule("linear_decay"), temperature=falling)
    run, rows = hb.Distillation(tagger(12), tagger(8), [table], catalogue=pack), Rows()
    run.fit([batch], steps=2, log_every=1, callbacks=[rows])
    assert [row["temperature/kl"] for row in rows.rows] == [8.0, 4.0]
    assert run.objective.weights(0.5) == [0.5]


class Rows:
    """Keeps every row of metrics."""

    def __init__(self):
        self.rows = []

    def log(self, state):
        self.rows.append(dict(state.record))


def test_each_step_has_the_temperature_of_its_progress(tagger, batches, pack):
    """At step s of S the schedule stands at (s - 1) / S, and the row says so."""
    (batch,) = batches([4, 2, 3])
    student, teacher, rows = tagger(8).double(), tagger(12).double(), Rows()
    tables = [hb.loss("kl", temperature=decaying(8)), hb.loss("kl", name="late", temperature=decaying(4), weight=0.5)]
    run = hb.Distillation(teacher, student, tables, catalogue=pack)
    frozen = torch.optim.SGD(student.parameters(), 0.0)
    run.fit([batch], steps=4, optimizer=frozen, log_every=1, callbacks=[rows])
    logits = [m(batch["input_ids"], batch["attention_mask"]) for m in (student, teacher)]
    for step, row in enumerate(rows.rows):
        assert row["temperature/kl"] == 8 * (1 - step / 4)
        assert row["temperature/late"] == 4 * (1 - step / 4)
        assert row["loss/kl"] == pytest.approx(kl(*logits, 8 * (1 - step / 4)), abs=1e-6)
        assert row["loss/late"] == pytest.approx(kl(*logits, 4 * (1 - step / 4)), abs=1e-6)


def test_the_merge_is_at_the_temperature_of_the_step(tagger, batches, objective, step):
    (batch,) = batches([4, 2, 3])
    both, student = {"a": tagger(12), "b": tagger(16)}, tagger(8)
    tables, merge = [hb.loss("kl", temperature=decaying(8))], {"by": "probabilities"}
    moving = objective(student, both, tables, batch, merge=merge)
    for progress in (0.0, 0.25, 0.75):
        fixed = [hb.loss("kl", temperature=8 * (1 - progress))]
        still = objective(student, both, fixed, batch, merge=merge)
        assert torch.equal(step(moving, [batch], progress=progress)[0], step(still, [batch])[0])


@settings(deadline=None, max_examples=20)
@given(st.floats(0.5, 20), st.floats(0, 0.999))
def test_a_moving_option_is_the_fixed_one_of_that_moment(pack, tagger, base, progress):
    """Law: for any base and any point of the training."""
    torch.manual_seed(0)
    student, teacher = tagger(8), tagger(12)
    batch = {"input_ids": torch.tensor([[1, 2], [3, 4]])}
    values = []
    for temperature in (decaying(base), base * (1 - progress)):
        made = Objective(student, teacher, [structure_loss(hb.loss("kl", temperature=temperature).table, pack)])
        with made.attached():
            made.measure(batch)
            made.forward(batch)
            values.append(made.means(batch, progress)["kl"].item())
    assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_what_is_not_there_along_the_way(tagger, objective):
    """Found before any training, with the moment at which it would have ended."""
    tables = [hb.loss("kl", temperature=decaying(8)), hb.loss("kl", temperature=decaying(8, "linear_growth"))]
    found = message(lambda: objective(tagger(), tagger(), tables))
    assert found == (
        "losses[1]: after 0.0% of the training the schedule gives temperature 0: 'temperature' must be > 0: 0.0"
    )
    tables = [hb.loss("ce", label_smoothing=decaying(0.5, "linear_growth"))]
    objective(tagger(), None, tables)
    steps = [hb.loss("ce", label_smoothing=decaying(0.4, "step", milestones=[0.5], factor=3.0))]
    assert message(lambda: objective(tagger(), None, steps)) == (
        "losses[0]: after 50.0% of the training the schedule gives label_smoothing 1.2: 'label_smoothing' must be <= "
        "1: 1.2000000000000002"
    )


def recalling(seen):
    """A catalogue with two losses: `memo` notes the numbers of samples that it is given, `learned` is a module."""

    def memo(student, index):
        seen.append(index.tolist())
        return student.square().mean()

    class Module(nn.Module):
        def forward(self, student):
            return student.square().mean()

    @options
    class Memo:
        takes = "logits"

        def build(self):
            return memo

    @options
    class Learned:
        takes = "logits"
        scale: float = 1.0

        def build(self):
            return Module()

    class Plugin:
        @hookimpl
        def hookbrew_register_losses(self, register):
            register("memo", Memo)
            register("learned", Learned)

        @hookimpl
        def hookbrew_register_schedules(self, register):
            register("down", Down)

    return catalogue(discover=False, plugins=[Plugin()])


@options
class Down:
    def build(self):
        return lambda progress: 1 - progress


def test_a_loss_that_learns_keeps_its_options(tagger):
    known = recalling([])
    table = structure_loss(hb.loss("learned", scale=decaying(1.0, "down")).table, known)
    assert message(lambda: Objective(tagger(), None, [table])) == (
        "losses[0]: scale: loss 'learned' learns or remembers, so its options cannot change on the way; give a number"
    )


def samples(batches, n=5):
    (batch,) = batches([4, 2, 3, 1, 4][:n])
    return [{k: v[i] for k, v in batch.items()} for i in range(n)]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_numbers_samples(batches, workers):
    """In the order in which they are drawn, whoever makes the batches; input_ids say whose number it is."""
    rows = samples(batches)
    loader = Loader(rows, batch_size=2, seed=3, collate=Pad({}), workers=workers)
    loader.index = "index"
    numbers = []
    for epoch in (1, 2):
        for batch in loader.epoch(epoch):
            assert batch["index"].dtype == torch.long
            for number, ids in zip(batch["index"].tolist(), batch["input_ids"], strict=True):
                assert torch.equal(ids, rows[number]["input_ids"])
                numbers.append(number)
    loader.close()
    assert sorted(numbers) == sorted([*range(5)] * 2)
    assert numbers[:5] != numbers[5:]


def test_numbers_of_the_data_itself_are_kept(batches):
    rows = [{**row, "index": torch.tensor(10 + i)} for i, row in enumerate(samples(batches))]
    loader = Loader(rows, batch_size=5, seed=None, collate=Pad({}))
    loader.index = "index"
    (batch,) = loader.first()
    assert batch["index"].tolist() == [10, 11, 12, 13, 14]


def test_nobody_is_numbered_unasked(batches):
    loader = Loader(samples(batches), batch_size=5, seed=None, collate=Pad({}))
    assert "index" not in loader.first()[0]


def test_numbers_reach_the_loss_and_no_model(batches, tagger):
    """Not even one that takes whatever it is given."""
    seen, given_ = [], []

    class Open(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tagger()

        def forward(self, **inputs):
            given_.append(sorted(inputs))
            return self.inner(inputs["input_ids"])

    loader = Loader(samples(batches), batch_size=5, seed=None, collate=Pad({}))
    loader.index = "index"
    made = Objective(Open(), None, [structure_loss(hb.loss("memo").table, recalling(seen))])
    with made.attached():
        made.measure(*loader.first())
    assert made.indexed
    assert seen == [[0, 1, 2, 3, 4]]
    assert given_ == [["attention_mask", "input_ids", "tags"]] * len(given_)


def test_a_batch_without_numbers(batches, tagger):
    made = Objective(tagger(), None, [structure_loss(hb.loss("memo").table, recalling([]))])
    (batch,) = batches([4, 2])
    with made.attached():
        assert message(lambda: made.measure(batch | {"idx": torch.arange(2)})) == (
            "losses[0]: loss 'memo' remembers samples, and the batch has no key 'index' with the number of each; "
            "did you mean 'idx'?"
        )


def test_only_losses_that_ask_are_numbered(tagger, objective):
    assert not objective(tagger(), tagger(), [hb.loss("kl")]).indexed
