"""TextBrewer's JSON becomes TOML that is valid here, and says what it could not map."""

import json

import pytest
from click.testing import CliRunner

from hookbrew.cli import main
from hookbrew.config import read, structure
from hookbrew.plugin import catalogue

DISTILLATION = {
    "temperature": 8,
    "temperature_scheduler": ["flsw", 1, 2],
    "hard_label_weight": 0.5,
    "kd_loss_weight": 0.7,
    "kd_loss_weight_scheduler": "linear_decay",
    "probability_shift": True,
    "is_caching_logits": True,
    "intermediate_matches": [
        {
            "layer_T": 6,
            "layer_S": 2,
            "feature": "hidden",
            "loss": "hidden_mse",
            "weight": 2,
            "proj": ["linear", 312, 768, {"lr": 1e-3}],
        },
        {"layer_T": [0, 0], "layer_S": [0, 0], "feature": "hidden", "loss": "nst", "weight": 1},
        {"layer_T": [0, 1], "layer_S": [0, 1], "feature": "hidden", "loss": "cos", "weight": 1},
        {"layer_T": -1, "layer_S": -1, "feature": "attention", "loss": "attention_ce", "weight": 1},
        {"layer_T": -1, "layer_S": -1, "feature": "attention", "loss": "attention_mse", "weight": 1},
        {"layer_T": 1, "layer_S": 1, "feature": "hidden", "loss": "attention_mse", "weight": 1},
        {"layer_T": 1, "layer_S": 1, "feature": "values", "loss": "attention_mse", "weight": 1},
    ],
}
TRAINING = {
    "gradient_accumulation_steps": 2,
    "output_dir": "out",
    "log_dir": "logs",
    "ckpt_steps": 100,
    "device": "cpu",
    "fp16": True,
    "data_parallel": True,
    "local_rank": 0,
}
MODELS = """
[teacher]
factory = "zoo:teacher"
[student]
factory = "zoo:student"
[data]
train = { factory = "zoo:data" }
"""


@pytest.fixture
def migrate(tmp_path, monkeypatch):
    """migrate({...}, {...}): the command on files with these contents."""
    monkeypatch.chdir(tmp_path)

    def call(*tables):
        names = [f"{number}.json" for number, _ in enumerate(tables)]
        for name, table in zip(names, tables, strict=True):
            (tmp_path / name).write_text(table if isinstance(table, str) else json.dumps(table))
        return CliRunner().invoke(main, ["migrate", "textbrewer", *names], prog_name="hookbrew")

    return call


def structured(folder, text):
    """The experiment, with the tables that a person fills in."""
    (folder / "migrated.toml").write_text(text + MODELS)
    return structure(read(folder / "migrated.toml", ["train.epochs=1"]), catalogue())


def test_it_is_a_valid_configuration(migrate, tmp_path):
    done = migrate(DISTILLATION, TRAINING)
    assert done.exit_code == 0, done.output
    made = structured(tmp_path, done.stdout)
    assert made.output == tmp_path / "out"
    assert (made.train.accumulate, made.train.device) == (2, "cpu")
    assert [loss.type for loss in made.losses] == [
        "kd_ce",
        "ce",
        "hidden_mse",
        "nst",
        "attention_ce",
        "attention_mse",
    ]
    kd, ce, hidden, nst, scores, attention = made.losses
    assert (kd.options.temperature, kd.options.t_squared, kd.options.probability_shift) == (8.0, False, True)
    assert (kd.options.dynamic, kd.options.beta, kd.options.gamma) == ("flsw", 1.0, 2.0)
    assert (kd.weight.base, kd.weight.schedule.type) == (1.0, "linear_decay")
    assert ce.weight.base == 0.5
    assert (hidden.student, hidden.teacher, hidden.projection.type) == ("hidden[2]", "hidden[6]", "linear")
    assert hidden.weight.base == 2.0
    assert hidden.optimizer == {"lr": 1e-3}
    assert (nst.type, nst.student, nst.teacher) == ("nst", ["hidden[0]", "hidden[0]"], ["hidden[0]", "hidden[0]"])
    assert (scores.student, scores.teacher) == ("attention[-1]:scores", "attention[-1]:scores")
    assert attention.student == "attention[-1]"
    assert [callback.type for callback in made.callbacks] == ["tensorboard", "checkpoint"]
    assert made.callbacks[1].options.every == 100


def test_what_differs_is_said(migrate):
    notes = [line[2:] for line in migrate(DISTILLATION, TRAINING).stdout.partition("not mapped:\n")[2].splitlines()]
    assert notes[: notes.index("")] == [
        "flsw: temperatures are 0.1 or more here (`coldest`); TextBrewer's become negative.",
        "kd_loss_weight = 0.7: linear_decay replaces it there: base is 1; here they multiply.",
        "t_squared = false: TextBrewer does not multiply by T^2; true keeps the gradient's size.",
        "is_caching_logits: there is no cache of teacher outputs yet.",
        "intermediate_matches[2]: layers [0, 1] and [0, 1] of 'cos' are not two numbers.",
        "intermediate_matches[3]: 'attention_ce' takes scores; your adaptor may have given probabilities.",
        "intermediate_matches[5]: 'attention_mse' on feature 'hidden' has no counterpart.",
        "intermediate_matches[6]: 'attention_mse' on feature 'values' has no counterpart.",
        "log_dir: tensorboard writes into the run folder, tb/.",
        "data_parallel: DataParallel is refused; give the student as DistributedDataParallel from Python.",
        "local_rank: torchrun sets it.",
    ]


def test_defaults(migrate, tmp_path):
    done = migrate({"kd_loss_type": "mse", "ckpt_frequency": 2})
    made = structured(tmp_path, done.stdout)
    assert [(loss.type, loss.options.temperature, loss.weight.base) for loss in made.losses] == [("kd_mse", 4.0, 1.0)]
    assert [(callback.type, callback.options.per_epoch) for callback in made.callbacks] == [("checkpoint", 2)]
    assert "[[losses]]" not in migrate({"kd_loss_weight": 0}).stdout


@pytest.mark.parametrize(("key", "kind"), [("hard_label_weight", "ce"), ("kd_loss_weight", "kd_ce")])
def test_a_schedule_counts_although_its_weight_is_0(migrate, tmp_path, key, kind):
    """0 is the default weight of the hard loss, so its schedule alone is what people write."""
    done = migrate({"kd_loss_weight": 0, key: 0, f"{key}_scheduler": "linear_growth"})
    (loss,) = structured(tmp_path, done.stdout).losses
    assert (loss.type, loss.weight.base, loss.weight.schedule.type) == (kind, 1.0, "linear_growth")
    assert f"{key} = 0: linear_growth replaces it there: base is 1; here they multiply." in done.stdout


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"temprature": 8}, "0.json: temprature: TextBrewer has no such key; did you mean 'temperature'?"),
        (
            {"intermediate_matches": [{"loss": "cos", "wieght": 2}]},
            "intermediate_matches[0].wieght: TextBrewer has no such key; did you mean 'weight'?",
        ),
        ({"kd_loss_type": "kl"}, "kd_loss_type: 'kl' is none; one of: ce, mse"),
        ("[]", "0.json: expected an object, got list"),
        ("{", "0.json: this is no JSON file that can be read: Expecting property name"),
    ],
)
def test_mistakes(migrate, table, problem):
    done = migrate(table)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert problem in done.stderr
