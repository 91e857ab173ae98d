"""`run --profile`: what took the time is named, the parts add up to the step, and the training is none the wiser."""

import gzip
import io
import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.progress import Progress

import hookbrew_plugins
from hookbrew.cli.settings import shown
from hookbrew.config import read
from hookbrew.errors import PreemptedError
from hookbrew.loop import Dispatch
from hookbrew.plan import planned
from hookbrew.plugin import catalogue
from hookbrew.profile import Profiling, Row
from hookbrew.profile.profile import shares
from hookbrew.profile.result import LINES, counted, text
from hookbrew.profile.ruler import Clock, Labels, within
from hookbrew.run import built, looping, resume, run
from tests.run import slow, striking
from tests.run.conftest import CONFIG, MODULE
from tests.run.slow import NAP
from tests.run.test_stages import STAGES
from tests.run.test_tasks import CONFIG as TASKS
from tests.run.test_tasks import MODULE as TASKLAND

KNOWN = catalogue(discover=False, plugins=[hookbrew_plugins, slow, striking])
SLEEPING = """

class Sleeping(Net):
    def forward(self, *given, **named):
        time.sleep(0.03)
        return super().forward(*given, **named)


class Late(list):
    def __getitem__(self, index):
        time.sleep(0.03)
        return super().__getitem__(index)


def late():
    return Late(samples())
"""
NOTHING = {"show": lambda result, where: None}


@pytest.fixture
def profile(toy):
    """profile(*sets): what was found, and the folder of the run."""

    def make(*sets, file="toy.toml", name="toy", **how):
        found = []
        shown = Profiling(show=lambda result, where: found.append(result), **how)
        run(file, [*sets, f"output=runs/{name}"], catalogue=KNOWN, quiet=True, profile=shown)
        return found, toy / f"runs/{name}"

    return make


@pytest.fixture
def sleepy(toy):
    """The toy, with a model and samples that sleep."""
    (toy / "toyland.py").write_text(f"import time\n{MODULE}{SLEEPING}")
    return toy


@pytest.fixture
def loops(toy):
    """The loops of toy.toml, built and not run."""
    plan = planned(read("toy.toml", []), KNOWN, quiet=True)
    with built(plan, KNOWN) as made:
        yield looping(plan, made)


def means(result):
    """Seconds a step of each part."""
    return {(row.group, row.name): row.mean / 1e3 for row in result.rows}


def test_the_parts_add_up(profile):
    (result,), folder = profile("train.epochs=4")
    assert sum(row.mean for row in result.rows) == pytest.approx(result.mean)
    assert sum(row.share for row in result.rows) == pytest.approx(1)
    groups = [row.group for row in result.rows]
    for group in ("data", "augment", "to the device", "backward", "gradients", "optimizer", "row of metrics"):
        assert groups.count(group) == 1
    assert {row.name for row in result.rows if row.group == "models"} == {"teacher", "student"}
    assert {"kd_ce", "hidden_mse/0", "hidden_mse/1"} < {row.name for row in result.rows if row.group == "losses"}
    assert {"metrics log", "tensorboard log"} <= {row.name for row in result.rows if row.group == "callbacks"}
    assert set(result.apart) >= {"evaluation", "epoch"}
    written = json.loads((folder / "profile/summary.json").read_text())
    assert written["mean"] == result.mean
    assert [Row(**row) for row in written["rows"]] == list(result.rows)


def test_the_trace_has_the_parts_by_their_names(profile):
    (result,), folder = profile("train.epochs=4")
    with gzip.open(folder / "profile/trace.json.gz") as file:
        names = [str(event.get("name")) for event in json.load(file)["traceEvents"]]
    first, last = result.traced
    assert [names.count(f"hookbrew: step: {step}") for step in range(first, last + 2)] == [1, 1, 1, 0]
    for part in ("data", "backward", "optimizer", "models: teacher", "models: student", "losses: kd_ce"):
        assert names.count(f"hookbrew: {part}") == 3, part
    assert any(name.startswith("aten::") for name in names)
    assert sorted(path.name for path in (folder / "profile").iterdir()) == ["summary.json", "trace.json.gz"]


@pytest.mark.parametrize(
    ("part", "sets"),
    [
        (("data", ""), ["data.train.factory=toyland:late", "data.batch_size=8"]),
        (("models", "teacher"), ["teacher.factory=toyland:Sleeping"]),
        (("models", "student"), ["student.factory=toyland:Sleeping"]),
        (("losses", "slow"), ["losses=[{type='ce'}, {type='slow'}]"]),
        (("augment", ""), ["augments=[{type='doze'}]"]),
        (("callbacks", "idle loss_end"), ["callbacks=[{type='idle', event='loss_end'}]"]),
        (("callbacks", "idle step_end"), ["callbacks=[{type='idle'}]"]),
    ],
)
def test_what_is_slow_is_named(sleepy, profile, part, sets):
    (result,), _ = profile(*sets)
    found = means(result)
    assert found[part] >= NAP
    (row,) = [row for row in result.rows if (row.group, row.name) == part]
    assert row.median >= 1e3 * NAP
    assert result.plain[1] >= 1e3 * NAP


@pytest.mark.parametrize("event", ["eval_batch_end", "checkpoint_saving", "epoch_start"])
def test_what_is_apart_is_not_in_the_step(profile, event):
    """An evaluation, a checkpoint, an epoch: told beside the step, in how many of them, with what they took."""
    sets = ["train.epochs=6", "train.evaluate_every=1", "data.batch_size=24"]
    callbacks = f"callbacks=[{{type='idle', event='{event}'}}, {{type='checkpoint', every=1}}]"
    (result,), _ = profile(*sets, callbacks)
    group = {"eval_batch_end": "evaluation", "checkpoint_saving": "checkpoint", "epoch_start": "epoch"}[event]
    times, spent = result.apart[group]
    assert (times, spent >= 1e3 * NAP * times) == (result.steps, True)
    assert not [row for row in result.rows if event in row.name or row.group == group]


def test_steps_of_each_kind():
    for left in range(1, 200):
        found = shares(left, 20)
        assert sum(found.values()) <= left
        assert found["parts"] >= 1
        assert found["plain"] <= found["parts"] <= 20
        assert found["trace"] or left == 1
    assert shares(1000, 20) == {"warm": 5, "plain": 20, "parts": 20, "trace": 3}
    assert shares(1000, 7)["parts"] == 7
    assert shares(1, 20) == {"warm": 0, "plain": 0, "parts": 1, "trace": 0}


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_a_short_run(profile, steps):
    (result,), folder = profile(f"train={{steps={steps}}}")
    assert result.first + result.steps - 1 <= steps
    assert (folder / "profile/trace.json.gz").exists() == (steps > 1)


def test_what_passes_belongs_to_the_innermost():
    clock = Clock(torch.device("cpu"))
    clock.step()
    with within(clock, ("models", "student")), within(clock, ("callbacks", "a")):
        pass
    clock.become(("backward", ""))
    with within(clock, ("evaluation", "")), within(clock, ("models", "student")):
        mark = clock.begin(("evaluation", "b"))
        clock.begin(("evaluation", "never ended"))
        clock.end(mark)
    whole, parts = clock.step()
    assert whole == pytest.approx(sum(parts.values()))
    assert list(parts) == [
        *(("loop itself", ""), ("models", "student"), ("callbacks", "a"), ("backward", "")),
        *(("evaluation", ""), ("evaluation", "b"), ("evaluation", "never ended")),
    ]
    assert list(clock.step()[1]) == [("loop itself", "")]


def state(loop):
    """Whatever a profile may put on a training."""
    parts = loop.objective.parts.values()
    return [
        vars(loop.dispatch).keys(),
        dict(loop.dispatch._table),
        loop.augment,
        vars(loop.feed).keys(),
        [vars(part).keys() for part in parts],
        [vars(part._view).keys() for part in parts],
    ]


@pytest.mark.parametrize("at", [None, 2, 5, 8, 11])
def test_nothing_is_left_on_anything(loops, toy, at):
    """Neither after a run nor after an exception in steps of any kind."""
    (loop,) = loops

    class Breaks:
        def step_end(self, state):
            if state.step == at:
                raise ValueError("here")

    loop.dispatch = Dispatch([("breaks", Breaks())])
    loop.update = type(loop.update)(
        optimizer=loop.optimizer, dispatch=loop.dispatch, scaler=loop.update.scaler, clip=loop.update.clip
    )
    before = state(loop)
    with Profiling(**NOTHING).around(loop, toy / "runs/toy"):
        if at is None:
            loop.run()
        else:
            with pytest.raises(ValueError, match="here"):
                loop.run()
    assert state(loop) == before
    assert not torch.autograd.profiler._is_profiler_enabled


def test_nothing_is_attached_before_and_after_the_measured_steps(profile, loops, toy):
    """Steps that warm up, are timed as a whole, or come later, are those of a run that is not profiled."""
    (loop,) = loops
    seen = {}

    class Looks:
        def batch_ready(self, state):
            seen[state.step] = "fire" in vars(loop.dispatch)

    loop.dispatch = Dispatch([("looks", Looks())])
    with Profiling(show=NOTHING["show"], steps=2).around(loop, toy / "runs/toy"):
        loop.run()
    attached = [step for step, there in seen.items() if there]
    assert attached == [6, 7, 8, 9, 10]
    assert len(seen) == 12


@pytest.mark.parametrize(
    ("sets", "file"),
    [
        (["train.accumulate=3", "train.epochs=6"], "toy.toml"),
        (["train.out_of_memory=halve"], "toy.toml"),
        (["train.epochs=4", "train.precision=bf16"], "toy.toml"),
        ([], "tasks.toml"),
        ([], "stages.toml"),
    ],
)
def test_the_weights_are_those_of_a_run_without(profile, toy, sets, file):
    (toy / "taskland.py").write_text(TASKLAND)
    (toy / "tasks.toml").write_text(TASKS)
    (toy / "stages.toml").write_text(CONFIG[: CONFIG.index("[[losses]]")] + STAGES)
    results, folder = profile(*sets, file=file, name="profiled")
    run(file, [*sets, "output=runs/plain"], catalogue=KNOWN, quiet=True)
    finals = sorted(path.relative_to(folder) for path in folder.rglob("student.safetensors") if "final" in path.parts)
    assert len(finals) == len(results) == (2 if file == "stages.toml" else 1)
    for path in finals:
        assert (folder / path).read_bytes() == (toy / "runs/plain" / path).read_bytes()
    for result in results:
        assert sum(row.mean for row in result.rows) == pytest.approx(result.mean)
    summaries = sorted(str(path.relative_to(folder)) for path in folder.rglob("summary.json"))
    assert summaries == (
        ["stage-2/profile/summary.json", "warm/profile/summary.json"]
        if file == "stages.toml"
        else ["profile/summary.json"]
    )
    if file == "tasks.toml":
        names = {row.name for row in results[0].rows}
        assert {"topic/student", "topic/kd_ce"} <= names or {"mood/student"} <= names
    sys.modules.pop("taskland", None)


@pytest.mark.parametrize(("at", "files"), [(5, ["summary.json"]), (11, ["summary.json", "trace.json.gz"])])
def test_a_run_that_is_stopped_meanwhile(toy, profile, caplog, at, files):
    """What was measured until then is written, whole; the run goes on later, and is profiled again if asked."""
    with pytest.raises(PreemptedError):
        profile(f"callbacks=[{{type='strike', at=[{at}]}}]")
    where = toy / "runs/toy/profile"
    if at == 5:  # in the first of those that are timed as a whole
        assert not where.exists()
        assert "nothing to show" in caplog.text
    else:
        assert sorted(path.name for path in where.iterdir()) == files
        assert json.loads((where / "summary.json").read_text())["traced"] == [10, 10]
    found = []
    again = Profiling(show=lambda result, where: found.append(result))
    resume(toy / "runs/toy", catalogue=KNOWN, quiet=True, profile=again)
    assert found[0].first > at
    assert json.loads((where / "summary.json").read_text())["first"] == found[0].first


def test_a_second_signal_writes_nothing(toy, profile, caplog):
    with pytest.raises(KeyboardInterrupt):
        profile("callbacks=[{type='strike', at=[8], twice=true}]")
    assert not (toy / "runs/toy/profile").exists()
    assert "nothing to show" in caplog.text


def test_a_folder_that_cannot_be_written(toy, profile, caplog):
    """The training goes on."""
    found = profile("callbacks=[{type='idle', event='run_start'}, {type='block'}]")
    assert found[0] == []
    assert json.loads((toy / "runs/toy/status.json").read_text())["status"] == "done"
    assert "the profile could not be written" in caplog.text


def test_a_callback_that_was_disabled_stays_so(profile):
    fall = "{type='fall', at=8, event='step_end', optional=true}"
    _, folder = profile(f"callbacks=[{fall}]")
    status = json.loads((folder / "status.json").read_text())
    assert [(each["callback"], each["step"]) for each in status["degraded"]] == [("fall", 8)]


def test_the_command(toy, hookbrew):
    done = hookbrew("run", "toy.toml", "--profile", "--profile-steps", "2", "--quiet")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "profile of steps 6 to 7 on cpu, auto"
    assert any(line.startswith("backward ") for line in lines)
    assert any(line.startswith("  kd_ce ") for line in lines)
    assert f"written: {toy / 'runs/toy/profile'}: summary.json, trace.json.gz (for ui.perfetto.dev)" in lines
    assert lines[-1].startswith("done: 12 steps")
    again = hookbrew("run", "toy.toml", "--profile")
    assert (again.exit_code, "exists already" in again.stderr) == (2, True)
    more = hookbrew("resume", "runs/toy", "--profile", "-s", "train.epochs=3")
    assert more.exit_code == 0, more.output
    assert "profile of steps 1" in more.stdout


def test_a_number_of_steps_that_would_mean_nothing(toy, hookbrew):
    done = hookbrew("run", "toy.toml", "--profile-steps", "2")
    assert done.exit_code == 2
    assert done.stderr.endswith("Error: --profile-steps is how many --profile measures; write both\n")
    assert not (toy / "runs").exists()


def test_a_run_that_is_done_has_nothing_to_measure(toy, hookbrew, caplog):
    hookbrew("run", "toy.toml")
    done = hookbrew("resume", "runs/toy", "--profile")
    assert done.exit_code == 0, done.output
    assert "nothing to show" in caplog.text


def test_many_parts_fit_on_a_screen():
    parts = {("losses", f"a_loss_with_a_long_name_for_many_layers/{place}"): 1e-3 * place for place in range(50)}
    parts |= {("data", ""): 0.01, ("backward", ""): 0.2, ("evaluation", ""): 3.0}
    result = counted([(4.0, parts)] * 3, 4, plain=(3, 5.0), rate=10.0, memory={"resident": 1}, facts={"device": "cpu"})
    lines = text(result).splitlines()
    assert len(lines) <= LINES + 10
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("  31 more") for line in lines)
    assert sum(row.share for row in result.rows) == pytest.approx(1)


def test_labels_are_closed_in_their_order():
    labels = Labels()
    labels.step(1)
    mark = labels.begin(("models", "student"))
    labels.become(("backward", ""))  # inside of another part: nothing
    labels.end(mark)
    labels.become(("backward", ""))
    labels.end(0)
    assert labels._open == []


@pytest.fixture(scope="module")
def ranks(launched):
    def prepare(folder):
        (folder / "toyland.py").write_text(MODULE)
        (folder / "toy.toml").write_text(CONFIG)

    return launched(Path(__file__).with_name("ranks_profile.py"), prepare)


@pytest.mark.parametrize("case", ["ddp", "fsdp"])
def test_the_first_of_several_processes_measures(ranks, case):
    first, second = ranks(case)
    assert (first["steps"], second["steps"]) == ([3], [])
    assert first["processes"] == [2]
    assert first["files"] == ["summary.json", "trace.json.gz"]
    assert {"backward", "models", "gradients"} < set(first["groups"])
    assert "counting what is valid" in first["losses"]
    assert first["same"]
    assert second["same"]


class Screen(io.StringIO):
    """What a terminal is told."""

    def isatty(self):
        return True


def test_the_table_takes_the_line_of_a_bar(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    with Progress(console=Console(file=screen, force_terminal=True, width=80), auto_refresh=False) as bar:
        bar.add_task("step")
        bar.refresh()
        shown(counted([(0.01, {("models", "teacher"): 0.01})], 6, plain=None, rate=None), Path("out"))
    before, _, after = screen.getvalue().partition("profile of steps")
    assert before.endswith("\r\x1b[2K")
    assert "\r\x1b[2Kwritten: out: summary.json" in after or "\nwritten: out: summary.json" in after
