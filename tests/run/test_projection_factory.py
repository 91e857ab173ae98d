"""`projection = { factory = ... }` and `optimizer = { ... }` of a loss, from the file to the run folder."""

import json
import tomllib

import pytest

PROJECTOR = """

class Bottleneck(nn.Module):
    def __init__(self, student, teacher, hidden=4):
        super().__init__()
        self.down, self.up = nn.Linear(student, hidden), nn.Linear(hidden, teacher)

    def forward(self, features):
        return self.up(self.down(features))


def wide(student, teacher):
    return nn.Linear(student, teacher + 1)


def none(student, teacher):
    return None


def half(student):
    return nn.Linear(student, 12)
"""
FACTORY = 'projection = { factory = "toyland:Bottleneck", hidden = 3 }'


@pytest.fixture
def projecting(toy, edit):
    """Give the second loss other lines in place of its projection."""
    (toy / "toyland.py").write_text((toy / "toyland.py").read_text() + PROJECTOR)
    return lambda text: edit('projection = "linear"', text)


def test_a_run_with_both(toy, hookbrew, projecting):
    projecting(FACTORY + "\noptimizer = { lr = 1e-3 }")
    done = hookbrew("run", "toy.toml", "-s", "train.log_every=1")
    assert done.exit_code == 0, done.output
    resolved = tomllib.loads((toy / "runs/toy/resolved.toml").read_text())
    assert resolved["losses"][1]["projection"] == {"factory": "toyland:Bottleneck", "hidden": 3}
    assert resolved["losses"][1]["optimizer"] == {"lr": 1e-3}
    rows = [json.loads(line) for line in (toy / "runs/toy/metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "lr/hidden_mse" in row]
    assert logged
    assert all(row["lr/hidden_mse"] == pytest.approx(row["lr"] / 10) for row in logged)
    again = hookbrew("run", "runs/toy/resolved.toml", "-s", "output=runs/again")
    assert again.exit_code == 0, again.output


def test_check_names_the_module(hookbrew, projecting):
    projecting(FACTORY)
    done = hookbrew("check", "toy.toml")
    assert done.exit_code == 0, done.output
    assert "Bottleneck projection" in done.output


WIDTHS = "loss 'hidden_mse' projects the student's (4, 5, 8) to (4, 5, 12), and Linear gave (4, 5, 13)"
CASES = {
    "a module that is not there": (
        'projection = { factory = "toylad:Bottleneck" }',
        "39:16: losses[1].projection.factory: no module 'toylad'; install it, or name the folder it is in with "
        'pythonpath = ["."]',
    ),
    "a name that is not there": (
        'projection = { factory = "toyland:Botleneck" }',
        "39:16: losses[1].projection.factory: toyland has no 'Botleneck'; did you mean 'Bottleneck'?",
    ),
    "an argument that it does not take": (
        'projection = { factory = "toyland:Bottleneck", hiden = 3 }',
        "39:16: losses[1].projection.factory: toyland:Bottleneck takes no argument 'hiden'; did you mean 'hidden'?",
    ),
    "a function of one width": (
        'projection = { factory = "toyland:half" }',
        "39:16: losses[1].projection.factory: toyland:half takes no argument 'teacher'; one of: student",
    ),
    "no module": (
        'projection = { factory = "toyland:none" }',
        "39:16: losses[1].projection.factory: toyland:none gave a NoneType; expected a torch module",
    ),
    "another width": ('projection = { factory = "toyland:wide" }', f"39:16: losses[1].projection.factory: {WIDTHS}"),
    "a width that is written": (
        'projection = { factory = "toyland:wide", student = 8 }',
        "39:42: losses[1].projection.student: it is measured, and passed to the factory; leave this key out",
    ),
    "a malformed name": (
        'projection = { factory = "toyland.wide" }',
        "39:16: losses[1].projection.factory: the string 'toyland.wide' is not module:attribute, like "
        "transformers:AutoModel.from_pretrained",
    ),
    "a misspelt key": (
        'projection = { factroy = "toyland:wide" }',
        "39:16: losses[1].projection.factroy: unknown key; did you mean 'factory'? (it is required)",
    ),
    "two ways at once": (
        'projection = { factory = "toyland:wide", type = "linear" }',
        "39:42: losses[1].projection.type: give either type or factory, not both",
    ),
    "an unknown option of its optimizer": (
        'projection = "linear"\noptimizer = { weight_decy = 0.1 }',
        "40:15: losses[1].optimizer.weight_decy: AdamW has no option 'weight_decy'; did you mean 'weight_decay'?",
    ),
    "a value that its optimizer refuses": (
        'projection = "linear"\noptimizer = { lr = -1.0 }',
        "40:1: losses[1].optimizer: AdamW: Invalid learning rate: -1.0",
    ),
    "no list of selectors": (
        'projection = "linear"\nlabels = 3',
        "40:1: losses[1].labels: expected a string or a list, got 3",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("command", ["run", "check"])
def test_mistake(toy, hookbrew, projecting, case, command):
    text, expected = CASES[case]
    projecting(text)
    done = hookbrew(command, "toy.toml")
    assert done.exit_code == 2, done.output
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [f"error: toy.toml:{expected}"]
    assert not (toy / "runs").exists()


def test_a_loss_without_parameters(hookbrew, edit):
    edit("temperature = 2", "temperature = 2\noptimizer = { lr = 1e-3 }")
    done = hookbrew("check", "toy.toml")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[0] == (
        "error: toy.toml:33:1: losses[0].optimizer: loss 'kd_ce' trains nothing of its own: it has no projection and "
        "learns nothing; leave this key out"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'temperature = { type = "linear_dcay", base = 8 }',
            "32:17: losses[0].temperature.type: no schedule called 'linear_dcay'; did you mean 'linear_decay'?",
        ),
        (
            'temperature = { type = "linear_decay", base = -8 }',
            "32:40: losses[0].temperature.base: must be > 0: -8.0",
        ),
        (
            'temperature = { type = "linear_decay", stop = 1 }',
            "32:40: losses[0].temperature.stop: unknown key; one of: base, end, start",
        ),
    ],
)
def test_a_schedule_of_an_option(hookbrew, edit, text, expected):
    edit("temperature = 2", text)
    done = hookbrew("check", "toy.toml")
    assert done.exit_code == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [f"error: toy.toml:{expected}"]


def test_an_option_that_varies_is_written_and_run_again(toy, hookbrew, edit):
    edit("temperature = 2", 'temperature = { type = "step", base = 8, factor = 0.5 }')
    done = hookbrew("run", "toy.toml")
    assert done.exit_code == 0, done.output
    text = (toy / "runs/toy/resolved.toml").read_text()
    assert tomllib.loads(text)["losses"][0]["temperature"] == {"type": "step", "factor": 0.5, "base": 8.0}
    again = hookbrew("run", "runs/toy/resolved.toml", "-s", "output=runs/again")
    assert again.exit_code == 0, again.output
    assert (toy / "runs/again/resolved.toml").read_text().partition("\n")[2] == text.partition("\n")[2]
