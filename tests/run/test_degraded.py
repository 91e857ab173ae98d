"""Callbacks that only watch, and fail: the run goes on to the same student, and its status says what is missing."""

import json
import subprocess
import sys

import pytest

from hookbrew.errors import FolderError
from hookbrew.loop import EVENTS
from hookbrew.run import resume, run

UNREACHED = ("run_abort", "checkpoint_failed", "resumed")
"""Events that no run has in which all else is well."""


def status(folder):
    return json.loads((folder / "status.json").read_text())


@pytest.fixture
def limited(forked):
    """limited(code, limit, *arguments): a process none of whose files may be larger than this: its disk is full."""

    def completed(code, limit, *arguments):
        head = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        return forked(head + code, *arguments).completed()

    return completed


@pytest.mark.parametrize("event", [event for event in EVENTS if event not in UNREACHED])
def test_a_run_without_an_optional_callback(train, known, folder, event):
    """The same student as if it had never been there."""
    fall = f"{{type='fall', at=0, event='{event}', optional=true}}"
    run("toy.toml", [f"callbacks=[{fall}]", "output=runs/fell"], catalogue=known, quiet=True)
    run("toy.toml", ["callbacks=[]", "output=runs/alone"], catalogue=known, quiet=True)
    found = status(folder / "runs/fell")
    assert found["status"] == "done"
    (told,) = found["degraded"]
    assert (told["callback"], told["event"], told["error"]) == ("fall", event, "RuntimeError: here")
    assert "degraded" not in status(folder / "runs/alone")
    one, other = (folder / f"runs/{name}/final/student.safetensors" for name in ("fell", "alone"))
    assert one.read_bytes() == other.read_bytes()


def test_what_was_disabled_before_the_run_went_on(toy, known):
    """The numbers of that time are missing for ever."""
    fall = "{type='fall', at=2, event='log', optional=true}"
    strike = "{type='strike', at=[5], once=true}"
    with pytest.raises(BaseException, match="SIGTERM"):
        run("toy.toml", [f"callbacks=[{fall}, {strike}]", "train.log_every=1"], catalogue=known, quiet=True)
    (before,) = status(toy / "runs/toy")["degraded"]
    assert (status(toy / "runs/toy")["status"], before["step"]) == ("preempted", 2)
    resume("runs/toy", catalogue=known, quiet=True, require="exact")
    assert [told["step"] for told in status(toy / "runs/toy")["degraded"]] == [2, 6]


def test_several_stages(toy, known):
    """The status of the whole has them all, that of a stage its own."""
    stages = "stages=[{name='a', train={epochs=1}}, {name='b', train={epochs=1}}]"
    fall = "callbacks=[{type='fall', at=0, event='%s', optional=true}]"
    text = (toy / "toy.toml").read_text().replace('[[callbacks]]\ntype = "tensorboard"\n', "")
    (toy / "toy.toml").write_text(text)
    run("toy.toml", [stages, fall % "epoch_end"], catalogue=known, quiet=True)
    assert [told["callback"] for told in status(toy / "runs/toy")["degraded"]] == ["fall", "fall"]
    assert [len(status(toy / f"runs/toy/{name}")["degraded"]) for name in ("a", "b")] == [1, 1]


@pytest.mark.parametrize("text", ["", "[]", '{"degraded": 3}', "\udcff"])
def test_a_status_that_says_anything(toy, text):
    from hookbrew.run import degraded

    (toy / "status.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert degraded(toy) == []


CLI = "from hookbrew.cli import main\nmain()\n"


def test_tensorboard_on_a_full_disk(toy, limited):
    """Its thread fails in the middle of the run, and raises in a later call."""
    sets = ["train.epochs=7", "train.log_every=1", "callbacks=[{type='tensorboard'}, {type='checkpoint', epochs=100}]"]
    whole = [part for each in sets for part in ("-s", each)]
    done = limited(CLI, 20000, "run", "toy.toml", "--quiet", *whole)
    assert done.returncode == 0, done.stderr
    found = status(toy / "runs/toy")
    (told,) = found["degraded"]
    assert (found["status"], found["step"], told["callback"]) == ("done", 42, "tensorboard")
    assert told["error"].startswith("OSError: [Errno 27] File too large")
    assert told["event"] in ("log", "eval_end"), "not only when it is closed"
    assert done.stderr.count("callback 'tensorboard' is disabled: it raised OSError: [Errno 27] File too large") == 1
    assert len((toy / "runs/toy/metrics.jsonl").read_text().splitlines()) == 42 + 7


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_whose_last_numbers_find_no_place(toy, known):
    """Its thread may fail after the last event in which it is called: then it is known when it is closed."""
    sets = ["train.epochs=1", "callbacks=[{type='wreck'}, {type='tensorboard'}]"]
    run("toy.toml", sets, catalogue=known, quiet=True)
    found = status(toy / "runs/toy")
    (told,) = found["degraded"]
    assert (found["status"], told["callback"], told["step"]) == ("done", "tensorboard", 6)
    assert told["event"] in ("eval_end", "close")
    assert told["error"].startswith("NotADirectoryError: ")


def test_tensorboard_that_fails_in_its_constructor(toy, limited):
    """The thread that writes raises in the thread that made it."""
    code = (
        "import sys, torch, hookbrew as hb\n"
        "x = [{'input': torch.randn(4, 3), 'labels': torch.arange(4) % 2}]\n"
        "run = hb.Distillation(None, torch.nn.Linear(3, 2), [hb.loss('ce')])\n"
        "state = run.fit(x, steps=3, callbacks=[hb.callback('tensorboard')], output=sys.argv[1])\n"
        "print(state.step, *state.degraded[0].values(), sep='|')\n"
    )
    done = limited(code, 10, str(toy / "out"))
    assert done.stdout == "3|tensorboard|run_start|0|OSError: [Errno 27] File too large\n", done.stderr


def test_tensorboard_whose_folder_is_a_file(toy, known, caplog):
    class_ = "{type='tensorboard', folder='resolved.toml'}"
    run("toy.toml", [f"callbacks=[{class_}]"], catalogue=known, quiet=True)
    (told,) = status(toy / "runs/toy")["degraded"]
    assert (told["callback"], told["event"], told["step"]) == ("tensorboard", "run_start", 0)
    assert told["error"].startswith("FileExistsError: ")
    assert [m for m in caplog.messages if "is disabled: it raised FileExistsError" in m]


def test_tensorboard_without_a_run_folder(pack):
    """What a user can mend ends it before the first step."""
    import torch

    import hookbrew as hb

    made = hb.Distillation(None, torch.nn.Linear(3, 2), [hb.loss("ce")], catalogue=pack)
    data = [{"input": torch.randn(4, 3), "labels": torch.arange(4) % 2}]
    with pytest.raises(FolderError, match="callback 'tensorboard' writes into the run folder, and there is none"):
        made.fit(data, steps=1, callbacks=[hb.callback("tensorboard")])


def test_nobody_reads_the_progress_any_more(toy):
    """As in `hookbrew run 2>&1 | head -n 1`."""
    command = [sys.executable, "-m", "hookbrew", "run", "toy.toml", "-s", "callbacks=[]"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr.readline().startswith("plugins: ")
    process.stderr.close()
    process.wait(timeout=120)
    found = status(toy / "runs/toy")
    assert (found["status"], found["step"]) == ("done", 12)
    assert [told["callback"] for told in found["degraded"]] == ["progress"]
    assert found["degraded"][0]["error"] == "BrokenPipeError: [Errno 32] Broken pipe"
