"""`hookbrew plan`: the table, its JSON, and what is wrong on the command line."""

import json
import sys

import pytest
from click.testing import CliRunner

from hookbrew.cli import main
from hookbrew.estimate.amount import BYTES, FLOPS, RATES, amount, mebibytes, short
from tests.run.test_stages import STAGES


@pytest.fixture
def command(tower):
    def call(*arguments):
        return CliRunner().invoke(main, ["plan", "tower.toml", *arguments], prog_name="hookbrew")

    return call


def test_the_table(command, tower):
    before = sorted(tower.iterdir())
    done = command("--gpus", "4", "--memory", "8MiB")
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.split("\n\n")[0].splitlines()]
    assert rows[0][:4] == ["GPUs", "batch", "each", "weights"]
    assert [row[0] for row in rows[1:]] == ["1", "2", "2", "2", "4", "4", "4"]
    assert {"yes", "no"} <= {cell for row in rows for cell in row}
    assert "measured on cpu: memory and time of real steps of 16 and 8 samples" in done.stdout
    assert "communication at 25 GB/s" in done.stdout
    assert "fits: within 90% of 8.0 MiB" in done.stdout
    assert done.stderr == "plan: steps are made\n"
    assert [path for path in sorted(tower.iterdir()) if path.name != "__pycache__"] == before


def test_what_is_small_fits_in_any_batch(command):
    done = command("--gpus", "1", "--memory", "1000TiB")
    assert done.stdout.splitlines()[1].split()[-4] == "any"


def test_json(command):
    done = command("--gpus", "2", "--json", "--quiet", "--flops", "1T", "--bandwidth", "1GB/s")
    found = json.loads(done.stdout)
    assert [(line["processes"], line["way"]) for line in found["lines"]] == [
        *((1, "alone"), (2, "DDP"), (2, "FSDP2"), (2, "FSDP2, both")),
    ]
    for line in found["lines"]:
        assert line["peak"] == pytest.approx(sum(line["memory"].values()))
        flops = sum(found["measured"]["flops"].values())
        assert line["compute"] == pytest.approx(line["batch"] * flops / 1e12)
    assert found["hardware"] == {"memory": None, "bandwidth": 1e9, "flops": 1e12}
    assert done.stderr == ""


def test_several_stages(command, tower):
    text = (tower / "tower.toml").read_text().replace("steps = 3\n", "")
    stages = STAGES.replace("layers[1]", "blocks[1]")
    (tower / "tower.toml").write_text(text[: text.index("[[losses]]")] + stages)
    done = command("--gpus", "1")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("stage warm\nGPUs")
    assert "\nstage stage-2\n" in done.stdout
    assert list(json.loads(command("--gpus", "1", "--json").stdout)) == ["warm", "stage-2"]


def test_a_student_that_cannot_be_shared_out(command, tower):
    module = (tower / "towers_of.py").read_text()
    scaled = module.replace("self.head = ", "self.scale = nn.Parameter(torch.ones(()))\n        self.head = ")
    (tower / "towers_of.py").write_text(scaled.replace("return self.head(hid", "return self.head(self.scale * hid"))
    done = command("--gpus", "2")
    assert done.exit_code == 0, done.output
    assert "FSDP2 " not in done.stdout.split("\n\n")[0]
    assert "without FSDP2: scale is a single number, which FSDP2 cannot share out" in done.stdout
    sys.modules.pop("towers_of", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "Invalid value for '--gpus': 0 is not in the range x>=1."),
        (["--gpus", "2", "--memory", "80gib"], "'80gib': no unit 'gib'; did you mean 'GiB'?"),
        (["--gpus", "2", "--memory", "80G"], "'80G': no unit 'G'; did you mean 'GB'?"),
        (["--gpus", "2", "--memory", "much"], "'much' is no amount, as 80GiB"),
        (["--gpus", "2", "--bandwidth", "300GB"], "'300GB': no unit 'GB'; did you mean 'GB/s'?"),
        (["--gpus", "2", "--bandwidth", "300"], "'300': the unit is missing; as 25GB/s"),
        (["--gpus", "2", "--flops", "300"], "'300': the unit is missing; as 300T"),
        (["--gpus", "2", "--flops", "300TFLOPS"], "'300TFLOPS': no unit 'TFLOPS'; did you mean 'T'?"),
        ([], "Missing option '--gpus'."),
    ],
)
def test_wrong_usage(command, arguments, message):
    done = command(*arguments)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].endswith(message)


def test_mistakes_in_the_file(command):
    done = command("--gpus", "2", "-s", "train.step=3")
    assert (done.exit_code, "train.step: unknown key; did you mean 'steps'?" in done.stderr) == (2, True)
    done = command("--gpus", "2", "-s", "train.device=cuda:9")
    assert (done.exit_code, "no device 'cuda:9' here" in done.stderr) == (2, True)


def test_amounts():
    assert amount("80GiB", BYTES) == 80 * 2**30
    assert amount(" 1.5 GB/s", RATES) == 1.5e9
    assert amount("300T", FLOPS) == 3e14
    assert [mebibytes(x * 2**20) for x in (0, 0.123, 9.96, 1234)] == ["0", "0.12", "10.0", "1,234"]
    assert [short(x) for x in (12, 3.2e6, 4e12)] == ["12 ", "3.2 M", "4 T"]
