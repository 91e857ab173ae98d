"""Real runs of a second each: a whole one, one in stages, one that failed, and one that was killed."""

import json
import signal
import sys
from html.parser import HTMLParser
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner

ROOT = Path(__file__).parents[2]

MODULE = '''
import os
import signal

import torch
from torch import nn


class Net(nn.Module):
    """Scores 3 classes of 6 features, (B, 6)."""

    def __init__(self, width=8):
        super().__init__()
        self.first = nn.Linear(6, width)
        self.last = nn.Linear(width, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


def samples(number=24, seed=0):
    made = torch.randn(number, 6, generator=torch.Generator().manual_seed(seed))
    return [{"x": row, "labels": int(row[:3].argmax())} for row in made]


class Failing(list):
    """Samples, of which the 17th that is asked for is the end of the process, or of the training."""

    asked = 0

    def __getitem__(self, index):
        self.asked += 1
        if self.asked == 17:
            if os.environ.get("HB_KILL"):
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("the disk of <b>samples</b> & more is gone")
        return super().__getitem__(index)


def failing():
    return Failing(samples())
'''

HEAD = """\
output = "runs/toy"
pythonpath = ["."]

[teacher]
factory = "reportland:Net"
width = 12

[student]
factory = "reportland:Net"

[data]
train = { factory = "reportland:samples" }
evaluate = { factory = "reportland:samples", number = 9, seed = 1 }
batch_size = 4

[train]
epochs = 2
log_every = 1
device = "cpu"

[optimizer]
type = "AdamW"
lr = 1e-2

[lr_schedule]
type = "linear"
warmup = 0.1
"""

LOSSES = """
[[losses]]
type = "kd_ce"
temperature = { type = "linear_decay", base = 4.0 }

[[losses]]
type = "hidden_mse"
student = "first"
teacher = "first"
projection = "linear"
weight = 0.5
"""

STAGES = """
[[stages]]
name = "warm"
train = { epochs = 1 }

[[stages.losses]]
type = "hidden_mse"
student = "first"
teacher = "first"
projection = "linear"

[[stages]]
name = "main"
train = { steps = 8 }

[[stages.losses]]
type = "kd_ce"
"""


def trained(folder, text, *sets):
    """The exit code of a run, in this process."""
    from hookbrew.cli import main

    (folder / "reportland.py").write_text(MODULE)
    (folder / "toy.toml").write_text(text)
    words = [word for given in sets for word in ("-s", given)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code = CliRunner().invoke(main, ["run", "toy.toml", "--quiet", *words], prog_name="hookbrew").exit_code
    sys.modules.pop("reportland", None)
    return code


def killed(forks, folder, *sets):
    """The exit code of a run of toy.toml in a process that ends by SIGKILL."""
    words = [word for given in sets for word in ("-s", given)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        command = ["run", "toy.toml", "--quiet", *words]
        process = forks("from hookbrew.cli import main; main()", *command, environment={"HB_KILL": "1"})
        return process.completed().returncode


@pytest.fixture(scope="session")
def land(tmp_path_factory, forks):
    """A folder with runs/toy, runs/warmer, runs/staged, runs/failed and runs/killed. Nothing is to be written in it."""
    folder = tmp_path_factory.mktemp("land")
    assert trained(folder, HEAD + LOSSES) == 0
    assert trained(folder, HEAD + LOSSES, "output=runs/warmer", "losses[1].weight=2.0", "optimizer.lr=0.03") == 0
    assert trained(folder, HEAD + STAGES, "output=runs/staged") == 0
    failing = "data.train.factory=reportland:failing"
    assert trained(folder, HEAD + LOSSES, "output=runs/failed", failing) == 1
    assert killed(forks, folder, "output=runs/killed", failing) == -signal.SIGKILL
    return folder / "runs"


@attrs.define
class Page(HTMLParser):
    """What a page holds: its tags, its tables as cells of text, and its text."""

    tags: list = attrs.field(factory=list)
    tables: list = attrs.field(factory=list)
    text: str = ""
    open: list = attrs.field(factory=list)
    _cell: list | None = None

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __attrs_post_init__(self):
        super().__init__()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> in {self.open}"
        if tag in ("dt", "dd"):
            self.text += " "
        if tag in ("td", "th"):
            self.tables[-1][-1].append(" ".join("".join(self._cell).split()))
            self._cell = None

    def handle_data(self, data):
        self.text += data
        if self._cell is not None:
            self._cell.append(data)

    def named(self, tag):
        """The attributes of all tags of a name."""
        return [attributes for name, attributes in self.tags if name == tag]

    def results(self):
        """The table of results: by run or stage, the cells by column; a number's column has `last` or `best` before."""
        heads, names = self.tables[0][0], self.tables[0][0][6:]
        keys = [*heads[1:6], *(f"{kind} {name}" for name in names for kind in ("last", "best"))]
        return {row[0]: dict(zip(keys, row[1:], strict=True)) for row in self.tables[0][2:]}


def parsed(path):
    """A page, parsed; every tag that is opened is closed."""
    made = Page()
    made.feed(path.read_text(encoding="utf-8"))
    made.close()
    assert made.open == []
    return made


@pytest.fixture(scope="session")
def parse():
    return parsed


@pytest.fixture(scope="session")
def report():
    """report("runs/toy"): the command in this process."""
    from hookbrew.cli import main

    def call(*arguments):
        return CliRunner().invoke(main, ["report", *map(str, arguments)], prog_name="hookbrew")

    return call


@pytest.fixture
def fake(tmp_path):
    """fake("a", rows, ...): a run folder made by hand, for what no training of a second leaves behind."""

    def make(name, rows=(), status=None, config="", env=None):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "status.json").write_text(json.dumps(status or {"status": "done", "step": 3}))
        lines = [row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows]
        (folder / "metrics.jsonl").write_text("".join(lines))
        (folder / "resolved.toml").write_text(config)
        (folder / "env.json").write_text(json.dumps(env or {}))
        return folder

    return make
