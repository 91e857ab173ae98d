"""What happens to a run whose process, disk, data or callbacks fail: it says so, and goes on from where it was."""

import json
import os
import signal

import pytest

from hookbrew import folder
from hookbrew.errors import CheckpointError, FolderError, NonFiniteError
from hookbrew.loop import EVENTS
from hookbrew.run import resume, run
from hookbrew.store import opened
from tests.run.compare import end, require_equal
from tests.run.conftest import BASE, STRIKES

FOREVER = ["-s", "train.epochs=100000", "-s", "train.log_every=1", "-s", "callbacks=[]"]


def status(folder):
    return json.loads((folder / "status.json").read_text())


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_a_run_after_a_checkpoint(toy, hookbrew, started, name):
    """Sent to all processes, as a terminal and a cluster do: those that load data leave it to the one that trains."""
    process = started(*FOREVER, "-s", "data.workers=1")
    os.killpg(process.pid, getattr(signal, name))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "Traceback" not in err
    step = status(toy / "runs/toy")["step"]
    assert f"stopped: {name} came; stopped after step {step} of 600000\n" in err
    assert f"note: go on with: hookbrew resume {toy}/runs/toy\n" in err
    assert status(toy / "runs/toy")["status"] == "preempted"
    assert max(path.name for path in (toy / "runs/toy/checkpoints").iterdir()) == f"step-{step:08}"
    done = hookbrew("resume", "runs/toy", "-s", f"train.epochs={step // 6 + 2}")
    assert done.exit_code == 0, done.output
    assert f"resume: step {step} of " in done.stderr


def test_a_second_ctrl_c_ends_it_at_once(toy, known):
    """Nothing is written, and older checkpoints stand."""
    sets = ["callbacks=[{type='strike', at=[3], signal='SIGINT', twice=true}, {type='checkpoint', every=2}]"]
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run("toy.toml", sets, catalogue=known, quiet=True)
    assert signal.getsignal(signal.SIGINT) is before
    assert status(toy / "runs/toy")["status"] == "stopped"
    assert [path.name for path in (toy / "runs/toy/checkpoints").iterdir()] == ["step-00000002"]
    assert not (toy / "runs/toy/final").exists()


def test_sigusr1_asks_for_a_checkpoint(toy, known):
    sets = ["callbacks=[{type='strike', at=[5], signal='SIGUSR1'}, {type='checkpoint', every=100, keep_last=9}]"]
    run("toy.toml", sets, catalogue=known, quiet=True)
    kept = sorted(path.name for path in (toy / "runs/toy/checkpoints").iterdir())
    assert kept == ["step-00000005", "step-00000012"]


def test_kill_9_loses_no_more_than_the_last_steps(train, folder, known, forked):
    """And nothing half is left when the run is done."""
    whole = train("whole", (), every=2)
    callbacks = f"callbacks=[{STRIKES % ([7], 2)}]".replace("at =", "signal = 'SIGKILL', once = true, at =")
    code = (
        "import sys, hookbrew_plugins\n"
        "from hookbrew.plugin import catalogue\nfrom hookbrew.run import run\nfrom tests.run import striking\n"
        "run('toy.toml', sys.argv[1:], catalogue=catalogue(discover=False, plugins=[hookbrew_plugins, striking]))\n"
    )
    done = forked(code, *BASE, callbacks, "output=runs/killed").completed()
    assert done.returncode == -signal.SIGKILL, done.stderr
    output = folder / "runs/killed"
    assert status(output)["status"] == "running"
    assert "step-00000006" in [path.name for path in (output / "checkpoints").iterdir()]
    resume(output, catalogue=known, quiet=True, require="exact")
    require_equal(end(output), end(whole))
    assert not [path for path in (output / "checkpoints").iterdir() if path.name.startswith(".")]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damaged_checkpoints_are_told_and_an_older_one_is_taken(train, known, caplog):
    whole, hurt = train("whole", (), every=3), train("hurt", [8], every=3)  # stopped at 8, done at 12
    for path in (hurt / "checkpoints").glob("step-00000012"):
        flip(path / "student.safetensors")
    said = []
    resume(hurt, catalogue=known, quiet=True, require="exact", say=said.append)
    assert "resume: step 9 of 12" in said[0]
    assert "step-00000012/student.safetensors is damaged: its checksum is another; going on from an" in caplog.text
    require_equal(end(hurt), end(whole))


def test_no_checkpoint_that_is_whole(toy, known):
    run("toy.toml", ["train.epochs=1"], catalogue=known, quiet=True)
    (toy / "runs/toy/checkpoints/step-00000006/manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"none of the checkpoints in .* is whole: .*-00000006 has no manif"):
        resume("runs/toy", catalogue=known, quiet=True)


def test_two_processes_in_one_folder(toy, known, started):
    process = started(*FOREVER)
    try:
        with pytest.raises(FolderError, match="runs/toy is in use by another process, which trains in it"):
            resume("runs/toy", catalogue=known, quiet=True)
        with pytest.raises(FolderError, match="is in use by another process"):
            run("toy.toml", catalogue=known, quiet=True, overwrite=True)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    assert status(toy / "runs/toy")["status"] == "running"
    run("toy.toml", ["train.epochs=1"], catalogue=known, quiet=True, overwrite=True)  # the lock went with the process


def test_a_disk_that_takes_no_checkpoint(toy, forked):
    """Each is told; the third in a row ends the run, and an older one stands."""
    code = (
        "import resource\nfrom hookbrew.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\nmain()\n"
    )
    sets = ["student.width=64", "train.epochs=5", "callbacks=[{type='checkpoint', every=1}]"]
    arguments = [part for each in sets for part in ("-s", each)]
    done = forked(code, "run", "toy.toml", *arguments).completed()
    assert done.returncode == 74, done.stderr
    told = [line for line in done.stderr.splitlines() if "cannot be written" in line]
    assert len(told) == 3
    assert told[0].endswith("File too large; the training goes on, and older ones stand")
    assert told[2].startswith("error: the checkpoint ")
    assert status(toy / "runs/toy")["status"] == "failed"
    assert [*(toy / "runs/toy/checkpoints").iterdir()] == []


@pytest.mark.parametrize(
    "event", [e for e in EVENTS if e not in ("run_abort", "close", "checkpoint_failed", "resumed")]
)
def test_a_callback_that_raises_in_any_event(toy, known, event):
    """The run ends there, says whose fault it is, and what stands on disk is whole."""
    sets = [f"callbacks=[{{type='fall', at=0, event='{event}'}}, {{type='checkpoint', every=2}}]"]
    with pytest.raises(RuntimeError, match="here") as caught:
        run("toy.toml", sets, catalogue=known, quiet=True)
    assert f"raised by callback 'fall' in event {event}, step " in caught.value.__notes__[0]
    assert status(toy / "runs/toy")["status"] == "failed"
    for path in (toy / "runs/toy/checkpoints").glob("step-*"):
        assert (path / "manifest.json").is_file()


@pytest.mark.parametrize("event", ["run_abort", "close"])
def test_a_callback_that_raises_when_all_is_over(toy, known, event, caplog):
    sets = [f"callbacks=[{{type='fall', at=0, event='{event}'}}, {{type='fall', at=3}}]"]
    with pytest.raises(RuntimeError, match="here") as caught:
        run("toy.toml", sets, catalogue=known, quiet=True)
    assert "in event step_end, step 3" in caught.value.__notes__[0]
    assert f"callback 'fall' failed in event {event}" in caplog.text


NAN = '''

class Bursting(Net):
    """Gives numbers that are none in some of its forward passes, each training once."""

    passes = 0

    def forward(self, input_ids, attention_mask=None):
        logits = super().forward(input_ids, attention_mask)
        if self.training and torch.is_grad_enabled():
            type(self).passes += 1
            if self.passes in (4, 5):
                return logits * float("inf")
        return logits
'''


@pytest.fixture
def bursting(toy):
    (toy / "toyland.py").write_text((toy / "toyland.py").read_text() + NAN)
    return ["student.factory=toyland:Bursting", "train.log_every=1"]


def test_a_step_that_is_not_finite_stops_before_the_update(toy, known, bursting):
    with pytest.raises(NonFiniteError, match=r"step 4: a loss or gradient is not finite .*weights of step 3"):
        run("toy.toml", bursting, catalogue=known, quiet=True)
    assert status(toy / "runs/toy")["step"] == 4


def test_a_step_that_is_not_finite_is_left_out_and_counted(toy, known, bursting):
    state = run("toy.toml", [*bursting, "train.nonfinite=skip"], catalogue=known, quiet=True)
    assert state.step == 12
    rows = [json.loads(line) for line in (toy / "runs/toy/metrics.jsonl").read_text().splitlines()]
    assert [row["skipped"] for row in rows if "loss" in row] == [0, 0, 0, 1, 2, *[2] * 7]
    assert [row["loss"] is None for row in rows if "loss" in row] == [False] * 3 + [True] * 2 + [False] * 7


def test_too_many_in_a_row(toy, known, bursting):
    text = (toy / "toyland.py").read_text()
    (toy / "toyland.py").write_text(text.replace("self.passes in (4, 5)", "self.passes > 2"))
    with pytest.raises(NonFiniteError, match="step 12: the last 10 updates were left out, none was finite"):
        run("toy.toml", [*bursting, "train.nonfinite=skip", "train.epochs=5"], catalogue=known, quiet=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_raises(toy, known, workers):
    more = """

class Torn(list):
    def __getitem__(self, index):
        if index == 13:
            raise LookupError("no such page")
        return super().__getitem__(index)


def torn():
    return Torn(samples())
"""
    (toy / "toyland.py").write_text((toy / "toyland.py").read_text() + more)
    sets = ["data.train.factory=toyland:torn", f"data.workers={workers}", "data.shuffle=false"]
    with pytest.raises(LookupError, match="no such page") as caught:
        run("toy.toml", sets, catalogue=known, quiet=True)
    assert caught.value.__notes__ == ["raised by batch 4 of epoch 1 of the data"]


@pytest.fixture
def _deaths():
    """A handler that raises, as torch's does when a process that loads data dies."""

    def die(number, frame):
        raise ConnectionError("a process that loads data has died")

    before = signal.signal(signal.SIGCHLD, die)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.usefixtures("_deaths")
@pytest.mark.parametrize(
    ("event", "told"), [("checkpoint_saving", "has died"), ("run_abort", "here"), ("close", "here")]
)
def test_a_death_is_heard_when_what_is_written_is_whole(toy, known, caplog, event, told):
    strike = f"{{type='strike', at=[3, 4], event='{event}', signal='SIGCHLD'}}, {{type='fall', at=4}}"
    sets = [f"callbacks=[{{type='checkpoint', every=1, keep_last=9}}, {strike}]"]
    with pytest.raises((ConnectionError, RuntimeError), match=told):
        run("toy.toml", sets, catalogue=known, quiet=True)
    assert told in status(toy / "runs/toy")["reason"]
    assert "failed in event" not in caplog.text
    assert sorted(opened(path).facts["step"] for path in (toy / "runs/toy/checkpoints").iterdir()) == [1, 2, 3]


@pytest.mark.usefixtures("_deaths")
def test_a_death_does_not_keep_a_failed_run_running(toy, known, monkeypatch):
    write = folder.write

    def struck(path, text):
        if '"failed"' in text:
            os.kill(os.getpid(), signal.SIGCHLD)
        write(path, text)

    monkeypatch.setattr(folder, "write", struck)
    with pytest.raises(RuntimeError, match="here"):
        run("toy.toml", ["callbacks=[{type='fall', at=2}]"], catalogue=known, quiet=True)
    assert status(toy / "runs/toy")["status"] == "failed"


# torch raises wherever the training is, also between the opening of a file and its `with`
@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning")
def test_a_process_that_loads_data_dies(toy, known):
    more = """

class Deadly(list):
    def __getitem__(self, index):
        if index == 13:
            import os
            os._exit(9)
        return super().__getitem__(index)


def deadly():
    return Deadly(samples())
"""
    (toy / "toyland.py").write_text((toy / "toyland.py").read_text() + more)
    sets = ["data.train.factory=toyland:deadly", "data.workers=1", "data.shuffle=false"]
    with pytest.raises((RuntimeError, ConnectionError)):  # as torch hears of it: by the death, or by the silence
        run("toy.toml", [*sets, "callbacks=[{type='checkpoint', every=1}]"], catalogue=known, quiet=True)
    assert status(toy / "runs/toy")["status"] == "failed"
    for path in (toy / "runs/toy/checkpoints").iterdir():
        assert (path / "manifest.json").is_file()
