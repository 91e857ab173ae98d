"""Losses that train something of their own, with options of their own for the optimizer."""

import pytest
import torch
from torch import nn

import hookbrew as hb
from hookbrew.errors import ConfigError

LINEAR = {"student": "blocks[0]", "teacher": "blocks[0]", "projection": "linear"}


@pytest.fixture
def pair(tagger):
    return tagger(12), tagger(8)


@pytest.fixture
def distilled(pair, pack):
    """A distillation by logits and by one hidden state, and the options that the second gives to the optimizer."""

    def make(own=None, **more):
        table = LINEAR | more
        losses = [hb.loss("kd_ce"), hb.loss("hidden_mse", **table, **({} if own is None else {"optimizer": own}))]
        return hb.Distillation(*pair, losses, catalogue=pack)

    return make


class Rates:
    """Keeps the rows of metrics."""

    def __init__(self):
        self.rows = []

    def log(self, state):
        self.rows.append(dict(state.record))


def refused(call):
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value).splitlines()


def test_a_group_of_their_own(distilled, pair, batches):
    run = distilled({"lr": 1e-3, "weight_decay": 0})
    optimizer = torch.optim.AdamW(pair[1].parameters(), 1e-2, betas=(0.8, 0.9), weight_decay=0.1)
    run.fit(batches([3, 2]), optimizer=optimizer, epochs=1)
    first, own = optimizer.param_groups
    assert [(g["lr"], g["weight_decay"], g["betas"]) for g in (first, own)] == [
        (1e-2, 0.1, (0.8, 0.9)),
        (1e-3, 0, (0.8, 0.9)),
    ]
    assert own["params"] == list(run.objective.extras.parameters())
    assert first["params"] == list(pair[1].parameters())
    run.fit(batches([3, 2]), optimizer=optimizer, epochs=1)
    assert len(optimizer.param_groups) == 2


def test_without_them_it_joins_the_first_group(distilled, pair, batches):
    run = distilled()
    optimizer = torch.optim.SGD(pair[1].parameters(), 1e-2)
    run.fit(batches([3, 2]), optimizer=optimizer, epochs=1)
    (only,) = optimizer.param_groups
    assert only["params"] == [*pair[1].parameters(), *run.objective.extras.parameters()]


def test_the_first_group_is_the_one_that_is_followed(distilled, pair, batches):
    """Not the defaults of the optimizer, as in TextBrewer."""
    head, *rest = pair[1].named_parameters()
    optimizer = torch.optim.SGD(
        [{"params": [p for _, p in rest], "lr": 0.5, "momentum": 0.3}, {"params": [head[1]]}], lr=0.1, momentum=0.9
    )
    distilled({"weight_decay": 0.01}).fit(batches([3, 2]), optimizer=optimizer, epochs=1)
    own = optimizer.param_groups[-1]
    assert (own["lr"], own["momentum"], own["weight_decay"]) == (0.5, 0.3, 0.01)


def test_the_schedule_multiplies_each_rate_and_both_are_logged(distilled, pair, batches):
    rates = Rates()
    optimizer = torch.optim.SGD(pair[1].parameters(), 1e-2)
    distilled({"lr": 1e-3}).fit(
        batches([3, 2], [4, 1]),
        optimizer=optimizer,
        epochs=2,
        lr_schedule=hb.schedule("linear_decay"),
        callbacks=[rates],
        log_every=1,
    )
    assert [row["lr"] for row in rates.rows] == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])
    assert [row["lr/hidden_mse"] for row in rates.rows] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 1e-3]


def test_a_rate_of_nothing_leaves_the_projection_as_it_was(distilled, pair, batches):
    run = distilled({"lr": 0.0, "weight_decay": 0.0})
    run.fit(batches([3, 2]), steps=1)
    before = [p.detach().clone() for p in run.objective.extras.parameters()]
    student = [p.detach().clone() for p in pair[1].parameters()]
    run.fit(batches([3, 2]), steps=2)
    assert all(map(torch.equal, before, run.objective.extras.parameters()))
    assert not all(map(torch.equal, student, pair[1].parameters()))


def test_parameters_with_names_keep_them(distilled, pair, batches):
    optimizer = torch.optim.SGD(pair[1].named_parameters(), 1e-2)
    distilled({"lr": 1e-3}).fit(batches([3, 2]), optimizer=optimizer, epochs=1)
    assert optimizer.param_groups[1]["param_names"] == [
        "extras.hidden_mse/Linear.weight",
        "extras.hidden_mse/Linear.bias",
    ]


def test_terms_of_one_loss_share_the_group(distilled, pair, batches):
    run = distilled({"lr": 1e-3}, student="blocks[0:2]", teacher="blocks[0:2]")
    optimizer = torch.optim.SGD(pair[1].parameters(), 1e-2)
    run.fit(batches([3, 2]), optimizer=optimizer, epochs=1)
    assert [len(group["params"]) for group in optimizer.param_groups[1:]] == [4]


def test_a_scheduler_of_torch_has_counted_the_groups(distilled, pair, batches):
    optimizer = torch.optim.SGD(pair[1].parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    run = distilled({"lr": 1e-3})
    assert refused(lambda: run.fit(batches([3, 2]), optimizer=optimizer, lr_schedule=scheduler, epochs=1)) == [
        "losses[1].optimizer: StepLR has counted the groups of the optimizer before this one came; "
        "take hb.schedule(...) for the learning rate, or leave this key out"
    ]
    assert len(optimizer.param_groups) == 1
    distilled().fit(batches([3, 2]), optimizer=optimizer, lr_schedule=scheduler, epochs=1)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            {"weight_decy": 0.1, "lr": 1e-3},
            "losses[1].optimizer.weight_decy: AdamW has no option 'weight_decy'; did you mean 'weight_decay'?",
        ),
        ({"weight_decay": -1.0}, "losses[1].optimizer: AdamW: Invalid weight_decay value: -1.0"),
        ({"lr": -1.0}, "losses[1].optimizer: AdamW: Invalid learning rate: -1.0"),
        ({"betas": [2.0, 0.9]}, "losses[1].optimizer: AdamW: Invalid beta parameter at index 0: 2.0"),
        ({"lr": "x"}, "losses[1].optimizer: AdamW: '<=' not supported between instances of 'float' and 'str'"),
    ],
)
def test_options_that_the_optimizer_does_not_have(distilled, batches, own, message):
    assert refused(lambda: distilled(own).fit(batches([3, 2]), epochs=1)) == [message]


def test_a_loss_that_trains_nothing_of_its_own(pair, batches, pack):
    losses = [hb.loss("kd_ce", optimizer={"lr": 1e-3}), hb.loss("hidden_mse", **LINEAR)]
    run = hb.Distillation(*pair, losses, catalogue=pack)
    assert refused(lambda: run.fit(batches([3, 2]), epochs=1)) == [
        "losses[0].optimizer: loss 'kd_ce' trains nothing of its own: it has no projection and learns nothing; "
        "leave this key out"
    ]


def test_parameters_that_the_optimizer_has_already(distilled, pair, batches):
    run = distilled({"lr": 1e-3})
    run.fit(batches([3, 2]), steps=1)
    optimizer = torch.optim.SGD([*pair[1].parameters(), *run.objective.extras.parameters()], 1e-2)
    assert refused(lambda: run.fit(batches([3, 2]), optimizer=optimizer, steps=1)) == [
        "losses[1].optimizer: the optimizer has these parameters already; leave them, or this key, out"
    ]


def test_an_optimizer_that_cannot_be_asked(distilled, pair, batches):
    class Odd(torch.optim.SGD):
        def __init__(self, params, secret):
            assert secret == "known"
            super().__init__(params, 1e-2)

    optimizer = Odd(pair[1].parameters(), "known")
    distilled({"lr": 1e-3}).fit(batches([3, 2]), optimizer=optimizer, epochs=1)
    assert optimizer.param_groups[1]["lr"] == 1e-3


def test_what_a_loss_learns_is_in_the_group_too(pair, batches, pack):
    losses = [hb.loss("hidden_mse", **LINEAR), hb.loss("vid", **LINEAR, optimizer={"lr": 0.5})]
    run = hb.Distillation(*pair, losses, catalogue=pack)
    optimizer = torch.optim.SGD(pair[1].parameters(), 1e-2)
    run.fit(batches([3, 2]), optimizer=optimizer, steps=1)
    projection, likelihood = [m for name, m in run.objective.extras.items() if name.startswith("vid")]
    assert isinstance(projection, nn.Linear)
    assert optimizer.param_groups[1]["params"] == [*projection.parameters(), *likelihood.parameters()]
    assert optimizer.param_groups[1]["lr"] == 0.5
