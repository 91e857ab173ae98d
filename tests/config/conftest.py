"""A catalogue of small made-up components, and a file that uses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import attrs
import pytest

from hookbrew.config import Factory, check_names, read, structure
from hookbrew.errors import PluginError
from hookbrew.options import at_least, choice, fraction, options, positive
from hookbrew.words import hint


@options
class KD:
    """Soft targets.

    More about them.
    """

    temperature: float = positive(4.0)
    """Softens both distributions."""
    rounds: int = at_least(1, 1)
    metric: Literal["cosine", "l2"] = "l2"
    fused: bool = False
    tag: str = "plain"
    layers: list[int] = attrs.field(factory=list)


@options
class Hidden:
    """Distance of hidden states."""

    takes: ClassVar[str] = "hidden"
    norm: str = choice("l1", "l2", default="l2")
    scales: dict[str, float] = attrs.field(factory=dict)
    margin: float | None = positive(None)
    pair: tuple[float, float] = (0.9, 0.99)
    table: Path | None = None


@options
class Needy:
    """Needs one thing."""

    epochs: int = at_least(1)
    low: float = fraction(0.0)
    high: float = fraction(1.0)
    many: int | list[int] = 1

    @high.validator
    def _ordered(self, attribute: Any, value: float) -> None:
        if value < self.low:
            raise ValueError(f"'high' must not be below low: {value} < {self.low}")


@options
class Linear:
    """From `start` to `end`."""

    start: float = fraction(0.0)
    end: float = fraction(1.0)


@options
class Flat:
    """The same number, always."""


@options
class MLP:
    """Layers."""

    width: int = at_least(1, 64)
    bias: bool = True


@options
class Note:
    """Writes into a folder."""

    every: int = at_least(1, 10)
    folders: list[Path] = attrs.field(factory=list)


@options
class Freeze:
    """Trains some modules no more."""

    path: str


@options
class Swap:
    """Another module."""

    path: str
    module: Factory


@attrs.frozen
class Plugin:
    name: str
    version: str
    why: str = ""


class Fake:
    """What config asks of a catalogue."""

    components: ClassVar[dict[str, dict[str, type]]] = {
        "losses": {"kd": KD, "hidden": Hidden, "needy": Needy},
        "schedules": {"linear": Linear, "flat": Flat},
        "projections": {"linear": Flat, "mlp": MLP},
        "augments": {"note": Note},
        "callbacks": {"note": Note, "flat": Flat},
        "edits": {"freeze": Freeze, "swap": Swap},
    }
    plugins = (Plugin("dkd", "0.3"), Plugin("gram_net", "1.0.post2"))
    failed = (Plugin("broken", "1", "ModuleNotFoundError: no such thing"),)

    def names(self, kind):
        return sorted(self.components[kind])

    def load(self, kind, name):
        if name not in self.components[kind]:
            raise PluginError(self.explain(kind, name))
        return self.components[kind][name]

    def explain(self, kind, name):
        singular = {"losses": "loss"}.get(kind, kind[:-1])
        return f"no {singular} called {name!r}; {hint(name, self.names(kind))}"


GOOD = """\
# an experiment
seed = 13
output = "runs/sms"

[teacher]
factory = "zoo.models:Big.load"
pretrained_model_name_or_path = "teacher"

[student]
factory = "zoo.models:Small"
width = 8
inner = { factory = "zoo.parts:Part", file = "./part.bin" }

[data]
train = { factory = "zoo.data:train", root = "../data" }
batch_size = 32

[train]
epochs = 3

[optimizer]
type = "SGD"
lr = 1
betas = [0.9, 0.99]

[lr_schedule]
type = "linear"
end = 0.5

[[losses]]
type = "kd"
temperature = 8
weight = { type = "linear", base = 0.5, end = 0.1 }

[[losses]]
type = "hidden"
student = "encoder.layer[0:3]"
teacher = "encoder.layer[1,3,5]"
projection = "linear"
scales = { "a b" = 1 }

[[callbacks]]
type = "note"
every = 5
"""


@pytest.fixture(scope="session")
def fake():
    return Fake()


@pytest.fixture(scope="session")
def good():
    """The text of a valid file."""
    return GOOD


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder that is also the current one, so that messages are the same everywhere."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def structured(folder, fake):
    """Write a text to kd.toml, read and structure it."""

    def run(text, sets=()):
        (folder / "kd.toml").write_text(text, encoding="utf-8")
        document = read("kd.toml", sets)
        check_names(document, fake)
        return structure(document, fake)

    return run
