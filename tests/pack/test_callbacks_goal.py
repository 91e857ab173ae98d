"""early_stop and best: what an evaluation is judged by, what is asked for, and what is kept."""

import io
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import hookbrew as hb
from hookbrew.errors import ConfigError, FolderError
from hookbrew_plugins.callbacks.best import Best, write
from hookbrew_plugins.callbacks.early_stop import EarlyStop

DATA = [{"input": torch.randn(4, 3), "labels": torch.tensor([0, 1, 0, 1])}]


class Script:
    """Gives an evaluation for each step: numbers of one metric, as they are written."""

    def __init__(self, values, name="accuracy"):
        self.values, self.name = iter(values), name
        self.weights = {}

    def eval_end(self, state):
        state.metrics[self.name] = next(self.values)
        self.weights[state.step] = {name: value.clone() for name, value in state.student.state_dict().items()}


def fit(script, *callbacks, steps=None, **arguments):
    """A training of one step for each value of the script."""
    torch.manual_seed(0)
    values = list(script.values)
    script.values = iter(values)
    student = nn.Linear(3, 2)
    run = hb.Distillation(None, student, [hb.loss("ce")])
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    return run.fit(
        DATA,
        steps=steps or len(values),
        evaluate=DATA,
        evaluate_every=1,
        optimizer=optimizer,
        callbacks=[script, *callbacks],
        **arguments,
    )


@pytest.mark.parametrize(
    ("options", "values", "step", "reason"),
    [
        ({}, [0.5, 0.6, 0.6, 0.1, 0.6, 0.9], 5, "accuracy was not better than 0.6 of step 2 in 3 evaluations"),
        ({"patience": 1}, [0.5, 0.6, 0.6, 0.9], 3, "accuracy was not better than 0.6 of step 2 in 1 evaluation"),
        ({"patience": 2}, [0.5, 0.4, 0.6, 0.5, 0.7, 0.6], 6, None),
        ({"patience": 2, "min_delta": 0.1}, [0.5, 0.55, 0.61, 0.65, 0.7, 0.9], 5, "0.61 of step 3 in 2 evaluations"),
        ({"patience": 1, "min_delta": 0.5}, [0.0, 0.5, 0.9], 2, "0 of step 1 in 1 evaluation"),
        ({"goal": "lowest", "patience": 2}, [0.5, 0.4, 0.6, 0.5, 0.1], 4, "0.4 of step 2 in 2 evaluations"),
        ({"patience": 2}, [math.nan, math.nan, 0.5], 2, "accuracy was not a number in 2 evaluations"),
        ({"patience": 2}, [0.5, math.nan, math.nan, 0.9], 3, "0.5 of step 1 in 2 evaluations"),
        ({"patience": 2}, [math.nan, 0.5, math.nan, 0.6], 4, None),
    ],
)
def test_the_end_comes_after_so_many_evaluations(options, values, step, reason):
    state = fit(Script(values), hb.callback("early_stop", **options))
    assert state.step == step
    assert (state.stop_reason is None) if reason is None else state.stop_reason.endswith(reason)


@pytest.mark.parametrize(
    ("metric", "values", "step"),
    [("loss", [3.0, 2.0, 2.5], 3), ("trec/loss", [3.0, 2.0, 2.5], 3), ("trec/f1", [0.3, 0.2, 0.9], 2)],
)
def test_the_goal_is_known_by_name(metric, values, step):
    state = fit(Script(values, metric), hb.callback("early_stop", metric=metric, patience=1))
    assert state.step == step


def test_a_goal_of_which_nothing_is_known():
    known = "accuracy, calibration_error, exact, f1, loss, precision, recall"
    for metric, hint in {"bleu": f"one of: {known}", "trec/acuracy": "did you mean 'accuracy'?"}.items():
        with pytest.raises(ConfigError) as caught:
            fit(Script([0.5]), hb.callback("best", metric=metric))
        assert str(caught.value) == (
            f"callback 'best': goal: must be highest or lowest: it is not known of metric {metric!r}; {hint}"
        )
    with pytest.raises(ConfigError, match="goal: the string 'high' is not a choice; did you mean 'highest'"):
        fit(Script([0.5]), hb.callback("early_stop", goal="high"))
    assert fit(Script([2.0, 1.0], "bleu"), hb.callback("early_stop", metric="bleu", goal="highest", patience=1)).step


@pytest.mark.parametrize("name", ["early_stop", "best"])
def test_a_metric_that_no_evaluation_gives(name, tmp_path):
    def told(*callbacks, number):
        with pytest.raises(ConfigError) as caught:
            fit(*callbacks, output=tmp_path / str(number))
        return str(caught.value)

    text = f"callback {name!r}: no evaluation gives a metric 'accuracy'; "
    asked = hb.callback(name)
    assert told(Script([0.5], "trec/accuracy"), asked, number=1) == text + "did you mean 'trec/accuracy'?"
    assert told(Script([0.5], "recall"), asked, number=2) == text + "one of: recall"

    class Late(Script):
        pass

    late = Late([0.5])
    before = hb.callback(name)
    torch.manual_seed(0)
    run = hb.Distillation(None, nn.Linear(3, 2), [hb.loss("ce")])
    with pytest.raises(ConfigError) as caught:
        run.fit(DATA, steps=1, evaluate=DATA, callbacks=[before, late], output=tmp_path / "3")
    assert str(caught.value) == text + "what counts metrics comes before it"


@pytest.mark.parametrize("name", ["early_stop", "best"])
def test_nothing_to_evaluate_on(name):
    run = hb.Distillation(None, nn.Linear(3, 2), [hb.loss("ce")])
    with pytest.raises(ConfigError) as caught:
        run.fit(DATA, steps=1, callbacks=[hb.callback(name)])
    assert str(caught.value) == f"fit: callback {name!r}: there is no evaluation data: give it with evaluate="


def test_the_best_student_is_kept(tmp_path):
    script = Script([0.5, 0.7, math.nan, 0.7, 0.6])
    state = fit(script, hb.callback("best"), output=tmp_path / "run")
    folder = tmp_path / "run/best"
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "student.safetensors"]
    kept = load_file(folder / "student.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in script.weights[2].items())
    assert not torch.equal(kept["weight"], state.student.weight)
    assert json.loads((folder / "metrics.json").read_text()) == {
        "metric": "accuracy",
        "value": 0.7,
        "step": 2,
        "epoch": 2,
        "metrics": {"accuracy": 0.7},
    }
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "best"]


def test_the_lowest_loss_elsewhere_and_infinity_in_json(tmp_path):
    script = Script([math.inf, 2.0, 2.5], "loss")
    seen = []

    class Look:
        def eval_end(self, state):
            seen.append(json.loads((tmp_path / "run/kept/metrics.json").read_text())["value"])

    fit(script, hb.callback("best", metric="loss", folder="kept"), Look(), output=tmp_path / "run")
    assert seen == [None, 2.0, 2.0]


def test_what_is_no_number_is_never_the_best(tmp_path):
    fit(Script([math.nan]), hb.callback("best"), output=tmp_path / "run")
    assert not (tmp_path / "run/best").exists()


def test_best_needs_a_place(tmp_path):
    with pytest.raises(FolderError, match="callback 'best' writes into the run folder, and there is none") as caught:
        fit(Script([0.5]), hb.callback("best"))
    assert "in event run_start, step 0" in caught.value.__notes__[0]

    (tmp_path / ".metrics.json.new").mkdir()
    with pytest.raises(FolderError) as caught:
        write(tmp_path / "metrics.json", {})
    assert str(caught.value) == f"{tmp_path}/metrics.json cannot be written: Is a directory"


def through(state):
    """A state after a file that holds nothing but plain values and tensors."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_patience_goes_on_where_it_was():
    values = [0.5, 0.6, 0.6, 0.5, 0.4, 0.9]
    whole = EarlyStop(patience=3).build()
    fit(Script(values), whole)
    for cut in range(1, 6):
        first = EarlyStop(patience=3).build()
        fit(Script(values[:cut]), first)
        second = EarlyStop(patience=3).build()
        second.load_state_dict(through(first.state_dict()))
        state = fit(Script(values[cut:]), second)
        assert second.state_dict()["value"] == whole.state_dict()["value"]
        assert second.state_dict()["waited"] == 3
        assert state.step == 5 - cut
        assert state.stop_reason.startswith("accuracy was not better than 0.6 of step ")


def test_what_is_worse_than_before_the_break_replaces_nothing(tmp_path):
    first = Best().build()
    fit(Script([0.5, 0.7]), first, output=tmp_path / "one")
    assert first.state_dict() == {"value": 0.7, "step": 2}
    second = Best().build()
    second.load_state_dict(through(first.state_dict()))
    fit(Script([0.6, 0.7]), second, output=tmp_path / "two")
    assert not (tmp_path / "two/best").exists()
    fit(Script([0.8]), second, output=tmp_path / "three")
    assert (tmp_path / "three/best/student.safetensors").exists()
