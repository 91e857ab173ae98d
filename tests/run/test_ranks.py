"""Two processes train as one does: the same weights, rows and results, whatever only one of them meets."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader, load

import hookbrew_plugins
from hookbrew.errors import PreemptedError
from hookbrew.plugin import catalogue
from hookbrew.run import resume, run
from tests.run import ranks_sets, striking
from tests.run.compare import rows
from tests.run.conftest import CONFIG, DROPPING, MODULE
from tests.run.ranks_sets import CALLBACKS, CAPTURED, SURGERY, UNEVEN
from tests.run.test_stages import STAGES
from tests.run.test_tasks import CONFIG as TASKS
from tests.run.test_tasks import MODULE as TASKLAND

KNOWN = catalogue(discover=False, plugins=[hookbrew_plugins, striking])


def train(name, *sets, file="toy.toml"):
    run(file, [*sets, f"output=runs/{name}"], catalogue=KNOWN, quiet=True)


def prepare(folder):
    """The toys, and runs of one process, one of which was ended in the middle of an epoch for each that goes on."""
    (folder / "toyland.py").write_text(f"import random\nimport numpy as np\n{MODULE}{DROPPING}")
    (folder / "toy.toml").write_text(CONFIG)
    (folder / "stages.toml").write_text(CONFIG[: CONFIG.index("[[losses]]")] + STAGES)
    (folder / "taskland.py").write_text(TASKLAND)
    (folder / "tasks.toml").write_text(TASKS)
    here = Path.cwd()
    os.chdir(folder)
    try:
        train("one")
        train("one-uneven", *UNEVEN)
        train("one-captured", *CAPTURED, *UNEVEN)
        train("one-callbacks", *CALLBACKS)
        train("one-surgery", *SURGERY)
        train("one-tasks", file="tasks.toml")
        train("one-stages", file="stages.toml")
        for name in ("one-ends", "one-ends-too"):
            with pytest.raises(PreemptedError):
                train(name, *UNEVEN, "callbacks=[{type='strike', at=[4]}]")
    finally:
        os.chdir(here)
        for name in ("toyland", "taskland"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return []


@pytest.fixture(scope="module")
def case(launched, place):
    """case("ddp"): what both ranks told, which is the same."""

    def made(folder):
        place.append(folder)
        prepare(folder)

    results = launched(Path(ranks_sets.__file__).with_name("ranks_run.py"), made)

    def one(name):
        first, second = results(name)
        assert first == second, name
        return first

    return one


@pytest.fixture
def runs(place, case, monkeypatch):
    """The folder of all runs."""
    monkeypatch.chdir(place[0])
    yield place[0] / "runs"
    sys.modules.pop("toyland", None)


def difference(one, other, name="final/student.safetensors"):
    one, other = load_file(one / name), load_file(other / name)
    assert one.keys() == other.keys()
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def shards(folder):
    """All tensors of a sharded checkpoint, whole."""
    reader = FileSystemReader(folder / "shards")
    made = {k: torch.empty(v.size) for k, v in reader.read_metadata().state_dict_metadata.items()}
    with pytest.warns(UserWarning, match="single process"):
        load(made, storage_reader=reader, no_dist=True)
    assert "optimizer.0.exp_avg" in made
    return made


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("what", ["", "uneven", "captured", "callbacks", "surgery"])
def test_two_are_one(case, runs, way, what):
    """Projections, accumulation, clipping, masks, a loss of captured layers alone, and a rank without a sample."""
    ended = case(f"{way} {what}".strip())
    one, two = (runs / "-".join(filter(None, (each, what))) for each in ("one", way))
    assert difference(one, two) <= 1e-6
    assert len(rows(one)) == len(rows(two)) > 4
    for mine, theirs in zip(rows(one), rows(two), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
    assert ended["samples"] == 2 * (26 if what in ("uneven", "captured") else 24)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_the_best_student_of_two(case, runs, way):
    case(f"{way} callbacks")
    assert difference(runs / "one-callbacks", runs / f"{way}-callbacks", "best/student.safetensors") <= 1e-6


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_projections_of_two(case, runs, way):
    """With a wrapper around the student alone each rank would train its own."""
    case(f"{way} uneven")
    saved = [max((runs / f"{each}-uneven/checkpoints").glob("step-*")) for each in ("one", way)]
    assert [folder.name for folder in saved] == ["step-00000006"] * 2
    if way == "ddp":
        assert difference(*saved, "extras.safetensors") <= 1e-6


def test_tasks(case, runs):
    """The head of another task has no gradient in a batch, and is to have none in both."""
    case("ddp tasks")
    assert difference(runs / "one-tasks", runs / "ddp-tasks") <= 1e-6


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_stages(case, runs, way):
    case(f"{way} stages")
    assert difference(runs / "one-stages/stage-2", runs / f"{way}-stages/stage-2") <= 1e-6


@pytest.mark.parametrize("way", ["ddp", "ddp crd", "fsdp", "fsdp crd"])
def test_an_exact_resume(case, runs, way):
    """A signal to one rank ends both after the same step, and what goes on is equal byte for byte."""
    ended = case(f"{way} struck")
    assert [told.get("code") for told in ended] == [75, 75, None]
    assert ended[1]["text"].startswith("SIGTERM came; stopped after step 5 of 6")
    case(f"{way} whole")
    way = way.replace(" ", "-")
    found, expected = (max((runs / f"{way}-{name}/checkpoints").glob("step-*")) for name in ("struck", "whole"))
    listed = {path.name for path in found.iterdir() if path.is_file()}
    assert "rank-1.pt" in listed
    for name in listed - {"manifest.json", "callbacks.pt"}:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    if way.startswith("fsdp"):
        one, other = shards(found), shards(expected)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert rows(runs / f"{way}-struck") == rows(runs / f"{way}-whole")


def test_each_remembers_its_own_samples(case, runs):
    """The wrapper would give all of them the first one's memory."""
    case("ddp crd whole")
    checkpoint = max((runs / "ddp-crd-whole/checkpoints").glob("step-*"))
    buffers = torch.load(checkpoint / "rank-1.pt")["buffers"]
    (name,) = (name for name in buffers if name.endswith("memory_student"))
    mine, theirs = load_file(checkpoint / "extras.safetensors")[name.removeprefix("extras.")], buffers[name]
    assert (mine != theirs).any(dim=1).sum() > 20


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_batch_norm_at_the_end_of_an_epoch(case, way):
    assert case(f"{way} norm")["samples"] == 22


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_go_on_as_one(case, runs, way):
    """No sample is repeated or left out, and nothing is lost but the last bits."""
    assert case(f"{way} ends")["code"] == 75
    lines = []
    ends = runs / f"{way}-ends"
    resume(ends, ["callbacks=[]", "train.shard='none'"], catalogue=KNOWN, quiet=True, require="data", say=lines.append)
    assert "processes: 2 before, 1 now" in lines[0]
    assert difference(runs / "one-uneven", ends) <= 1e-6
    assert [row["step"] for row in rows(ends)] == [row["step"] for row in rows(runs / "one-uneven")]


@pytest.mark.parametrize(("name", "folder"), [("two", "one-ends"), ("shards", "one-ends-too")])
def test_one_goes_on_as_two(case, runs, name, folder):
    assert case(f"one goes on as {name}")["samples"] == 52
    assert difference(runs / "one-uneven", runs / folder) <= 1e-6


def test_a_request_of_one_rank_holds_for_both(case, runs):
    assert case("stop") | {"metrics": 0} == {"step": 4, "reason": "enough", "samples": 16, "metrics": 0}
    assert case("save")["step"] == 12
    assert json.loads((runs / "save/status.json").read_text())["status"] == "done"
    case("evaluate")
    assert [row["step"] for row in rows(runs / "evaluate") if "eval/accuracy" in row] == [4, 6, 12]


def test_memory_that_one_rank_lacks(case, runs):
    """Both make smaller passes, and the gradient is the same."""
    case("memory")
    assert difference(runs / "one", runs / "memory") <= 1e-6


def test_numbers_that_are_not_finite_on_one_rank(case, runs):
    """Both leave the update out, or both end before it."""
    assert case("nan")["code"] == 76
    skipped = [row["skipped"] for row in rows(runs / "nan-skipped") if "skipped" in row]
    assert (case("nan skipped")["step"], skipped[-1]) == (12, 1)


def test_what_the_first_rank_finds_ends_both(case):
    """It alone looks at the folder; the other one ends with the same code, and does not wait."""
    told = case("exists")
    assert (told["code"], "exists already" in told["text"]) == (2, True)


def test_shards_that_do_not_fit(case, runs):
    """The training goes on in both, and nothing of the checkpoints is left."""
    assert case("cramped")["step"] == 12
    assert list((runs / "cramped/checkpoints").iterdir()) == []
