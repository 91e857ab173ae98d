"""A whole run by its command, and what it leaves on disk."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import sys

import attrs
import pytest
import torch
from safetensors.torch import load_file, load_model


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_leaves_a_folder(toy, hookbrew):
    done = hookbrew("run", "toy.toml")
    assert done.exit_code == 0, done.output
    run = toy / "runs/toy"
    names = [re.sub(r"tfevents.*", "tfevents", name) for name in files(run)]
    assert [name for name in names if not name.startswith("checkpoints/")] == [
        ".lock",
        "config.toml",
        "env.json",
        "final/student.safetensors",
        "metrics.jsonl",
        "resolved.toml",
        "status.json",
        "tb/events.out.tfevents",
    ]
    assert (run / "config.toml").read_bytes() == (toy / "toy.toml").read_bytes()
    status = json.loads((run / "status.json").read_text())
    assert (status["status"], status["step"]) == ("done", 12)
    assert re.fullmatch(r"done: 12 steps  accuracy \d\.\d{4}  \S+runs/toy\n", done.stdout)
    assert "plugins: standard" in done.stderr
    assert "step 12/12  epoch 2/2  loss " in done.stderr


def test_rows_of_metrics(toy, hookbrew):
    hookbrew("run", "toy.toml")
    steps = [(row["step"], "eval/accuracy" in row) for row in rows(toy / "runs/toy")]
    assert steps == [(1, False), (3, False), (6, False), (6, True), (9, False), (12, False), (12, True)]
    first = rows(toy / "runs/toy")[0]
    assert {"loss", "loss/kd_ce", "loss/hidden_mse/0", "loss/hidden_mse/1", "weight/kd_ce", "lr"} < set(first)


def test_tensorboard_reads_the_events(toy, hookbrew):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    hookbrew("run", "toy.toml")
    events = EventAccumulator(str(toy / "runs/toy/tb"))
    events.Reload()
    written = {row["step"]: row for row in rows(toy / "runs/toy") if "loss" in row}
    read = {e.step: e.value for e in events.Scalars("train/loss")}
    assert read == pytest.approx({step: row["loss"] for step, row in written.items()})
    assert {"loss/kd_ce", "weight/kd_ce", "eval/accuracy", "train/lr"} < set(events.Tags()["scalars"])
    assert "config/text_summary" in events.Tags()["tensors"]


def test_the_weights_load_without_hookbrew(toy, hookbrew):
    hookbrew("run", "toy.toml")
    sys.path.insert(0, str(toy))
    try:
        from toyland import Net
    finally:
        sys.path.remove(str(toy))
    student = Net()
    load_model(student, toy / "runs/toy/final/student.safetensors")
    keys = set(load_file(toy / "runs/toy/final/student.safetensors"))
    assert keys == set(student.state_dict())


def test_the_resolved_file_reproduces_the_run(toy, hookbrew):
    hookbrew("run", "toy.toml", "-s", "train.epochs=1")
    again = hookbrew("run", "runs/toy/resolved.toml", "-s", "output=runs/again")
    assert again.exit_code == 0, again.output
    first, second = (load_file(toy / f"runs/{name}/final/student.safetensors") for name in ("toy", "again"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    timeless = [
        [{k: v for k, v in row.items() if k != "samples_per_second"} for row in rows(toy / f"runs/{name}")]
        for name in ("toy", "again")
    ]
    assert timeless[0] == timeless[1]


def test_another_seed_is_another_run(toy, hookbrew):
    for seed in ("3", "4"):
        hookbrew("run", "toy.toml", "-s", f"seed={seed}", "-s", f"output=runs/{seed}")
    first, second = (load_file(toy / f"runs/{seed}/final/student.safetensors") for seed in ("3", "4"))
    assert not all(torch.equal(first[key], second[key]) for key in first)


def test_the_random_state_of_the_caller_stays(toy, hookbrew):
    before = torch.random.get_rng_state()
    hookbrew("run", "toy.toml")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert str(toy) not in sys.path


def test_supervised_training_needs_no_teacher(toy, hookbrew, edit):
    edit('[teacher]\nfactory = "toyland:Net"\nwidth = 12\n', "")
    text = (toy / "toy.toml").read_text()
    (toy / "toy.toml").write_text(text[: text.index("[[losses]]")] + '[[losses]]\ntype = "ce"\n')
    done = hookbrew("run", "toy.toml", "-s", "train.epochs=20", "-s", "train.log_every=60")
    assert done.exit_code == 0, done.output
    losses = [row["loss"] for row in rows(toy / "runs/toy") if "loss" in row]
    assert losses[-1] < losses[0] / 2


def test_quiet_shows_no_progress(toy, hookbrew):
    done = hookbrew("run", "toy.toml", "--quiet")
    assert done.exit_code == 0
    assert done.stderr == ""


def test_checkpoints_keep_the_newest(toy, hookbrew):
    with (toy / "toy.toml").open("a") as file:
        file.write('\n[[callbacks]]\ntype = "checkpoint"\nevery = 2\nkeep_last = 2\n')
    done = hookbrew("run", "toy.toml")
    assert done.exit_code == 0, done.output
    kept = sorted(path.name for path in (toy / "runs/toy/checkpoints").iterdir())
    assert kept == ["step-00000010", "step-00000012"]


def test_a_transformers_student_loads_by_itself(toy, hookbrew, edit):
    from transformers import AutoModelForSequenceClassification

    edit(
        '[student]\nfactory = "toyland:Net"\n',
        '[student]\nfactory = "transformers:BertForSequenceClassification"\n'
        'config = { factory = "transformers:BertConfig", vocab_size = 20, hidden_size = 8, num_hidden_layers = 1,'
        " num_attention_heads = 2, intermediate_size = 16, num_labels = 3 }\n",
    )
    edit('student = "layers[*]"\nteacher = "layers[*]"', 'student = "bert.encoder.layer[0]"\nteacher = "layers[1]"')
    done = hookbrew("run", "toy.toml", "-s", "train.epochs=1")
    assert done.exit_code == 0, done.output
    model, report = AutoModelForSequenceClassification.from_pretrained(toy / "runs/toy/final", output_loading_info=True)
    assert not any(report.values())
    assert model.config.num_hidden_layers == 1


def test_an_earlier_run_is_never_touched(toy, hookbrew):
    hookbrew("run", "toy.toml")
    before = snapshot(toy / "runs")
    refused = hookbrew("run", "toy.toml")
    assert refused.exit_code == 2
    assert refused.stderr.splitlines()[-1] == (
        f"error: output {toy}/runs/toy exists already; "
        "give another, as with -s output=..., or replace it with --overwrite"
    )
    assert snapshot(toy / "runs") == before


@pytest.mark.parametrize(
    "mistake",
    [
        "train.epochs=0",
        "losses[1].student=nothing",
        "optimizer.type=AdmaW",
        "student.width=none",
        "losses[1].weight=-x",
    ],
)
def test_overwriting_waits_for_all_checks(toy, hookbrew, mistake):
    hookbrew("run", "toy.toml")
    before = snapshot(toy / "runs")
    refused = hookbrew("run", "toy.toml", "--overwrite", "-s", mistake)
    assert refused.exit_code in (1, 2)
    assert snapshot(toy / "runs") == before


def test_overwriting_replaces_a_run(toy, hookbrew):
    hookbrew("run", "toy.toml")
    (toy / "runs/toy/mine.txt").write_text("x")
    assert hookbrew("run", "toy.toml", "--overwrite", "-s", "train.epochs=1").exit_code == 0
    assert "mine.txt" not in files(toy / "runs/toy")
    assert json.loads((toy / "runs/toy/status.json").read_text())["step"] == 6


def test_a_folder_that_is_no_run_is_not_replaced(toy, hookbrew):
    (toy / "runs/toy").mkdir(parents=True)
    (toy / "runs/toy/thesis.txt").write_text("x")
    refused = hookbrew("run", "toy.toml", "--overwrite")
    assert refused.exit_code == 2
    assert refused.stderr.splitlines()[-1] == (
        f"error: output {toy}/runs/toy is not a folder of an earlier run (it has no status.json); remove it yourself"
    )
    assert files(toy / "runs") == ["toy/thesis.txt"]


def test_ctrl_c_twice_ends_a_run_cleanly(toy, started):
    process = started("-s", "train.epochs=100000", fresh=True)
    os.kill(process.pid, signal.SIGSTOP)  # so that both are there before the step is over
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGCONT)
    _, err = process.communicate(timeout=60)
    # A shell says 130 to both. Python ends itself by the signal, whoever caught it, if it struck inside an
    # exec() of text, as where torch makes a class at first use (CPython's run_eval_code_obj).
    assert process.returncode in (130, -signal.SIGINT), err
    assert "Traceback" not in err
    status = json.loads((toy / "runs/toy/status.json").read_text())
    assert status["status"] == "stopped"
    assert "final" not in [name.split("/")[0] for name in files(toy / "runs/toy")]


def test_overwriting_from_the_file_that_goes_away(toy, hookbrew):
    hookbrew("run", "toy.toml", "-s", "train.epochs=1")
    resolved = (toy / "runs/toy/resolved.toml").read_text()
    done = hookbrew("run", "runs/toy/resolved.toml", "--overwrite")
    assert done.exit_code == 0, done.output
    assert (toy / "runs/toy/config.toml").read_text() == resolved
    assert (toy / "runs/toy/final/student.safetensors").is_file()


def test_quiet_shows_no_progress_that_was_named_either(toy, hookbrew, edit):
    edit('type = "tensorboard"', 'type = "progress"')
    assert hookbrew("run", "toy.toml", "--quiet").stderr == ""


@pytest.fixture
def limited(forked):
    """limited(*sets): a run in which no file may grow over 6000 bytes: the nearest thing to a full disk."""
    code = """
        import resource
        from hookbrew.cli import main
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
        main()
    """
    return lambda *sets: forked(code, "run", "toy.toml", "-s", "callbacks=[]", *sets).completed()


def test_weights_that_do_not_fit_on_the_disk(toy, limited):
    done = limited("-s", "student.width=64", "-s", "train.epochs=1")
    assert done.returncode == 2, done.stderr
    error, note = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "note: "))]
    assert error.startswith(f"error: the student cannot be written to {toy}/runs/toy/final: ")
    assert "File too large" in error
    assert note.startswith("note: raised by callback 'weights' in event run_end, step 6 (")
    assert "Traceback" not in done.stderr
    assert json.loads((toy / "runs/toy/status.json").read_text())["status"] == "failed"
    assert [name for name in files(toy / "runs/toy") if "final" in name] == []


def test_metrics_that_do_not_fit_on_the_disk(toy, limited):
    done = limited("-s", "train.epochs=9", "-s", "train.log_every=1")
    assert done.returncode == 2, done.stderr
    assert f"error: {toy}/runs/toy/metrics.jsonl cannot be written: File too large\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((toy / "runs/toy/status.json").read_text())["status"] == "failed"


def test_a_status_that_cannot_be_written_hides_nothing(tmp_path):
    from hookbrew.ranks import Ranks
    from hookbrew.run import recorded

    @attrs.define
    class Gone:
        total_steps: int = 3
        step: int = 2
        degraded: tuple = ()
        ranks: Ranks = attrs.field(factory=Ranks)

    def fail():
        shutil.rmtree(tmp_path / "run")
        raise LookupError("mine")

    (tmp_path / "run").mkdir()
    with pytest.raises(LookupError, match="mine") as caught, recorded(Gone(), tmp_path / "run"):
        fail()
    assert caught.value.__notes__ == [f"{tmp_path}/run/status.json cannot be written: No such file or directory"]


def test_a_folder_has_its_status_before_anything_else(toy, hookbrew, monkeypatch):
    """Stopped at the first file, it can be replaced: it says that it is a run."""

    def stop(path, text):
        if path.name != "status.json":
            raise KeyboardInterrupt
        write(path, text)

    from hookbrew import folder

    write = folder.write
    with monkeypatch.context() as patched:
        patched.setattr(folder, "write", stop)
        assert hookbrew("run", "toy.toml").exit_code == 130
    assert files(toy / "runs/toy") == [".lock", "status.json"]
    assert json.loads((toy / "runs/toy/status.json").read_text())["status"] == "stopped"
    assert hookbrew("run", "toy.toml", "--overwrite", "-s", "train.epochs=1").exit_code == 0


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("toy.toml/run", "{toy}/toy.toml is not a folder that can be written to"),
        ("x" * 300, "File name too long"),
    ],
)
def test_an_output_that_cannot_be_made(toy, hookbrew, output, reason):
    done = hookbrew("check", "toy.toml", "-s", f"output={output}")
    assert done.exit_code == 2, done.output
    assert done.stderr == f"error: output {toy}/{output} cannot be made: {reason.format(toy=toy)}\n"


def test_a_linked_folder_is_not_replaced(toy, hookbrew):
    hookbrew("run", "toy.toml", "-s", "train.epochs=1", "-s", "output=real")
    (toy / "link").symlink_to(toy / "real")
    before = snapshot(toy / "real")
    done = hookbrew("run", "toy.toml", "--overwrite", "-s", "output=link")
    assert done.exit_code == 2, done.output
    last = done.stderr.splitlines()[-1]
    assert last == f"error: output {toy}/link is a link, which is not replaced; name the folder itself"
    assert snapshot(toy / "real") == before


@pytest.mark.usefixtures("toy")
def test_no_process_is_left(pack):
    from hookbrew.run import run

    state = run("toy.toml", ["data.workers=1", "train.epochs=1", "callbacks=[]"], catalogue=pack, quiet=True)
    assert state.step == 6
    assert multiprocessing.active_children() == []
