"""checkpoint: which checkpoints stay when newer ones stand."""

import math
import random

import pytest
import torch
from torch import nn

import hookbrew as hb
from hookbrew.errors import ConfigError
from hookbrew.ranks import Ranks
from hookbrew.store import Store, opened
from hookbrew_plugins.callbacks.checkpoint import Checkpoint

DATA = [{"input": torch.randn(4, 3), "labels": torch.tensor([0, 1, 0, 1])}]


class Script:
    """Gives an evaluation at each step that has a value: numbers of one metric, as they are written."""

    def __init__(self, values, name="accuracy"):
        self.values, self.name = values, name

    def eval_end(self, state):
        state.metrics[self.name] = self.values[state.step - 1]


class Look:
    """Which checkpoints stand after each step."""

    priority = 1000

    def __init__(self):
        self.seen = {}

    def step_start(self, state):
        self.seen[state.step - 1] = stands(state.folder)


def stands(folder):
    return [
        step
        for step in sorted(Store(folder / "checkpoints").steps())
        if opened(Store(folder / "checkpoints").place(step))
    ]


def fit(values, folder, *callbacks, name="accuracy", look=None, **options):
    torch.manual_seed(0)
    student = nn.Linear(3, 2)
    run = hb.Distillation(None, student, [hb.loss("ce")])
    keeper = hb.callback("checkpoint", **options)
    every = [Script(values, name), keeper, *callbacks, look or Look()]
    run.fit(DATA, steps=len(values), evaluate=DATA, evaluate_every=1, callbacks=every, output=folder)
    return stands(folder)


@pytest.mark.parametrize(
    ("options", "values", "kept"),
    [
        ({"keep_best": 1}, [0.1, 0.9, 0.2, 0.3, 0.4], [2, 5]),
        ({"keep_best": 2}, [0.1, 0.9, 0.2, 0.3, 0.4, 0.1], [2, 5, 6]),
        ({"keep_best": 1}, [0.5, 0.5, 0.5, 0.5], [1, 4]),
        ({"keep_best": 2}, [0.5, 0.5, 0.5, 0.4, 0.5], [1, 2, 5]),
        ({"keep_best": 1}, [math.nan, 0.1, math.nan, math.nan], [2, 4]),
        ({"keep_best": 2}, [math.nan, math.nan], [2]),
        ({"keep_best": 3, "goal": "lowest"}, [0.9, 0.1, 0.8, 0.3, 0.2, 0.7, 0.6, 0.95], [2, 4, 5, 8]),
        ({"keep_best": 1, "every": 1}, [0.1, 0.9, 0.2, 0.3, 0.4], [2, 4, 5]),
        ({"keep_best": 1, "every": 1}, [0.1, 0.9, 0.2, 0.3, 0.95], [4, 5]),
        ({"keep_best": 1, "every": 1, "keep_last": 3}, [0.1, 0.9, 0.2, 0.3, 0.4, 0.3], [2, 4, 5, 6]),
        ({"keep_best": 1, "every": 1, "keep_every": 3}, [0.1, 0.9, 0.2, 0.3, 0.4, 0.3, 0.2], [2, 3, 6, 7]),
        ({"every": 1}, [0.1, 0.9, 0.2, 0.3, 0.4], [4, 5]),
        ({"keep_best": 1}, [0.1, 0.2, 0.3, 0.4], [3, 4]),
    ],
)
def test_the_best_stay_with_the_newest(tmp_path, options, values, kept):
    """Where nothing else is asked for, one is made of each evaluation that is among the best, and at the end."""
    assert fit(values, tmp_path / "run", **{"epochs": 100, **options} if "every" not in options else options) == kept


def test_a_better_one_stands_before_the_other_goes(tmp_path):
    look = Look()
    fit([0.1, 0.9, 0.2, 0.95, 0.3, 0.2, 0.97, 0.1], tmp_path / "run", epochs=100, keep_best=1, look=look)
    assert look.seen == {0: [], 1: [1], 2: [1, 2], 3: [1, 2], 4: [2, 4], 5: [2, 4], 6: [2, 4], 7: [4, 7]}


def test_a_checkpoint_knows_that_it_is_one_of_the_best(tmp_path):
    """Else a training that goes on from it would let it go."""
    fit([0.1, 0.9, 0.2, 0.8, 0.3], tmp_path / "run", epochs=100, keep_best=2, keep_every=1)
    known = {}
    for step in (1, 2, 3, 4, 5):
        path = tmp_path / f"run/checkpoints/step-{step:08}/callbacks.pt"
        if path.exists():
            known[step] = torch.load(path, weights_only=True)["checkpoint"]["best"]
    assert known == {
        1: [[1, 0.1]],
        2: [[2, 0.9], [1, 0.1]],
        3: [[2, 0.9], [3, 0.2]],
        4: [[2, 0.9], [4, 0.8]],
        5: [[2, 0.9], [4, 0.8]],
    }


def test_against_all_evaluations_sorted(tmp_path):
    draw = random.Random(3)
    for number in range(6):
        values = [draw.choice([0.1, 0.2, 0.3, 0.4, 0.5, math.nan]) for _ in range(14)]
        most = draw.randrange(1, 5)
        ranked = sorted((-value, step) for step, value in enumerate(values, 1) if value == value)
        best = [step for _, step in ranked[:most]]
        found = fit(values, tmp_path / str(number), every=1, keep_best=most)
        assert found == sorted({*best, 13, 14}), values


def test_a_checkpoint_that_was_made_before_its_evaluation(tmp_path):
    """At the end of an epoch; the loop makes no second one."""
    torch.manual_seed(0)
    student, folder = nn.Linear(3, 2), tmp_path / "run"
    made = hb.Distillation(None, student, [hb.loss("ce")])
    values = dict(zip(range(2, 13, 2), [0.1, 0.9, 0.2, 0.8, 0.3, 0.1], strict=True))
    script = Script([values.get(step) for step in range(1, 13)])
    keeper = hb.callback("checkpoint", every=1, keep_best=2)
    made.fit(DATA * 2, epochs=6, evaluate=DATA, callbacks=[script, keeper], output=folder)
    assert stands(folder) == [4, 8, 11, 12]


@pytest.mark.parametrize("name", ["accuracy", "trec/accuracy"])
def test_a_metric_that_is_named(tmp_path, name):
    values = [0.3, 0.1, 0.2, 0.25]
    assert fit(values, tmp_path / "high", name=name, epochs=100, keep_best=1, metric=name) == [1, 4]
    assert fit(values, tmp_path / "low", name="bleu", epochs=9, keep_best=1, metric="bleu", goal="lowest") == [2, 4]


def test_mistakes(tmp_path):
    for options, message in [
        ({"metric": "loss"}, "metric: says what keep_best goes by; write how many stay, as in keep_best = 1"),
        ({"goal": "lowest"}, "goal: says what keep_best goes by; write how many stay, as in keep_best = 1"),
        (
            {"keep_best": 1, "metric": "los"},
            "goal: must be highest or lowest: it is not known of metric 'los'; did you mean 'loss'?",
        ),
    ]:
        with pytest.raises(ConfigError) as caught:
            fit([0.5], tmp_path / "run", **options)
        assert str(caught.value) == f"callback 'checkpoint': {message}"
    with pytest.raises(ConfigError) as caught:
        fit([0.5], tmp_path / "run", keep_best=1, name="trec/accuracy")
    text = "callback 'checkpoint': no evaluation gives a metric 'accuracy'; did you mean 'trec/accuracy'?"
    assert str(caught.value) == text
    with pytest.raises(ValueError, match="'keep_best' must be >= 1"):
        Checkpoint(keep_best=0)


def test_nothing_to_go_by(tmp_path, caplog):
    """No evaluation in a whole epoch: said once."""
    made = hb.Distillation(None, nn.Linear(3, 2), [hb.loss("ce")])
    made.fit(DATA, epochs=3, callbacks=[hb.callback("checkpoint", keep_best=1)], output=tmp_path / "run")
    told = "callback 'checkpoint': keep_best goes by evaluations, and there was none in epoch 1"
    assert caplog.messages == [told]


def test_what_is_damaged_or_gone_does_not_count(tmp_path):
    """The best that are left stay."""
    store = Store(tmp_path / "run/checkpoints")
    for step in (3, 5):
        store.write(step, {"x": b"y"}, {})
    keeper = Checkpoint(keep_best=2).build()
    keeper.load_state_dict({"by": "the highest accuracy", "best": [[4, 0.9], [3, 0.5]]})
    state = State(folder=tmp_path / "run")
    keeper.run_start(state)
    assert state.kept == {3}
    assert keeper.state_dict()["best"] == [[3, 0.5]]


class State:
    """What `run_start` reads."""

    def __init__(self, folder):
        self.folder, self.kept, self.total_epochs, self.store = folder, set(), 1, None
        self.ranks = Ranks()

    def require_folder(self, who):
        return self.folder


@pytest.mark.parametrize(("most", "best"), [(1, [[4, 0.9]]), (2, [[4, 0.9], [3, 0.5]]), (3, [[4, 0.9], [3, 0.5]])])
def test_another_number_after_the_break(most, best):
    keeper = Checkpoint(keep_best=most).build()
    keeper.load_state_dict({"by": "the highest accuracy", "best": [[4, 0.9], [3, 0.5]]})
    assert keeper.state_dict()["best"] == best


def test_another_metric_after_the_break(caplog):
    state = {"by": "the highest accuracy", "best": [[4, 0.9]]}
    keeper = Checkpoint(keep_best=2, metric="loss").build()
    keeper.load_state_dict(state)
    assert keeper.state_dict() == {"by": "the lowest loss", "best": []}
    (told,) = caplog.messages
    assert told == (
        "callback 'checkpoint': keep_best went by the highest accuracy, and goes by the lowest loss now; "
        "what it kept counts no more"
    )
    without = Checkpoint().build()
    without.load_state_dict(state)
    assert without.state_dict()["best"] == []
    assert len(caplog.messages) == 1


def test_a_failed_checkpoint_costs_no_good_one(tmp_path, caplog):
    """What was best before stays until a better one stands."""

    class InTheWay:
        def step_start(self, state):
            if state.step == 5:
                (state.folder / "checkpoints/.new-00000005").touch()

    found = fit([0.1, 0.5, 0.2, 0.3, 0.9, 0.2, 0.1], tmp_path / "run", InTheWay(), every=1, keep_best=1)
    assert "step-00000005 cannot be written: File exists" in caplog.messages[0]
    assert found == [2, 6, 7]
    remembered = torch.load(tmp_path / "run/checkpoints/step-00000006/callbacks.pt", weights_only=True)
    assert remembered["checkpoint"]["best"] == [[2, 0.5]]
