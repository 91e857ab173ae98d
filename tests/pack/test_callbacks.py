"""The callbacks of the pack: what they count, write and show."""

import json
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

import hookbrew as hb
from hookbrew.errors import FolderError
from hookbrew_plugins.callbacks.progress import clock


@pytest.fixture
def fit(pack, tagger, batches):
    def make(*callbacks, pooled=True, labels="labels", **arguments):
        data = batches([3, 2], [4, 1], [5, 2])
        student = tagger(8, pooled=pooled)
        run = hb.Distillation(None, student, [hb.loss("ce")], labels=labels, catalogue=pack)
        return data, run.fit(data, epochs=1, evaluate=data, callbacks=callbacks, **arguments)

    return make


@pytest.mark.parametrize(("pooled", "labels"), [(True, "labels"), (False, "tags")])
def test_metrics_are_counted_over_all_that_is_labelled(fit, pooled, labels):
    names = ["accuracy", "f1", "precision", "recall", "loss"]
    data, state = fit(hb.callback("evaluate", metrics=names), pooled=pooled, labels=labels)
    state.student.eval()
    with torch.no_grad():
        outs = [state.student(b["input_ids"], b["attention_mask"]) for b in data]
    truth = np.concatenate([b[labels].flatten().numpy() for b in data])
    logits = np.concatenate([o.flatten(0, -2).double().numpy() for o in outs])[truth != -100]
    truth = truth[truth != -100]
    guess = logits.argmax(1)
    hits = [[((guess == a) & (truth == b)).sum() for b in range(3)] for a in range(3)]
    right = np.array([hits[c][c] for c in range(3)])
    guessed, there = np.bincount(guess, minlength=3), np.bincount(truth, minlength=3)
    seen = (guessed + there) > 0  # torchmetrics leaves out classes that are in neither
    expected = {
        "accuracy": right.sum() / len(truth),
        "precision": (right / guessed.clip(1))[seen].mean(),
        "recall": (right / there.clip(1))[seen].mean(),
        "f1": (2 * right / (guessed + there).clip(1))[seen].mean(),
        "loss": -(logits - np.log(np.exp(logits).sum(1, keepdims=True)))[np.arange(len(truth)), truth].mean(),
    }
    assert state.metrics == pytest.approx(expected, rel=1e-5)


def test_plain_lines(fit, capsys):
    fit(hb.callback("evaluate"), hb.callback("progress"), log_every=2)
    lines = capsys.readouterr().err.splitlines()
    number = r"[\d.e+-]+"
    assert len(lines) == 4
    for line, step in zip(lines, (1, 2, 3), strict=False):
        assert re.fullmatch(rf"step {step}/3  epoch 1/1  loss {number}  lr 5e-05  \d+:\d\d left", line)
    assert re.fullmatch(r"step 3: accuracy \d\.\d{4}", lines[3])


def test_a_bar_on_a_terminal():
    """A real terminal: the bar, the numbers of the evaluation above it, and the cursor given back."""
    code = """
        import torch, hookbrew as hb
        x = [{"input": torch.randn(4, 3), "labels": torch.arange(4) % 2}] * 5
        losses = [hb.loss("ce", name="a_loss_with_a_rather_long_name") for _ in range(3)]
        run = hb.Distillation(None, torch.nn.Linear(3, 2), losses)
        run.fit(x, epochs=1, evaluate=x, callbacks=[hb.callback("evaluate"), hb.callback("progress")])
    """
    program = f"import pty, sys; sys.exit(pty.spawn([sys.executable, '-c', {textwrap.dedent(code)!r}]) != 0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, stdin=-3)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", done.stdout)
    assert "5/5" in shown
    assert "step 5: accuracy" in shown
    assert done.stdout.rindex("\x1b[?25h") > done.stdout.rindex("\x1b[?25l")


def test_clock():
    assert [clock(s) for s in (5, 65, 3723)] == ["0:05", "1:05", "1:02:03"]


def test_rows_are_on_disk_when_they_are_logged(fit, tmp_path):
    seen = []

    class Look:
        def step_end(self, state):
            seen.append(len((tmp_path / "out/metrics.jsonl").read_text().splitlines()))

    fit(hb.callback("metrics"), Look(), log_every=1, output=tmp_path / "out")
    assert seen == [0, 1, 2]
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 3]


def test_checkpoints_are_announced(fit, tmp_path):
    seen = []

    class Look:
        def checkpoint_saving(self, state):
            seen.append(("saving", state.step))

        def checkpoint_saved(self, state):
            seen.append(("saved", state.step, (tmp_path / f"out/checkpoints/step-{state.step:08}").is_dir()))

    fit(hb.callback("checkpoint", every=2), Look(), output=tmp_path / "out")
    assert seen == [("saving", 2), ("saved", 2, True), ("saving", 3), ("saved", 3, True)]


def test_a_checkpoint_that_cannot_be_written(fit, tmp_path, caplog):
    """It ends no training: there are older ones, and the weights at the end."""
    seen = []

    class Look:
        def run_start(self, state):
            (tmp_path / "out/checkpoints").write_text("in the way")

        def checkpoint_failed(self, state):
            seen.append(state.step)

    fit(hb.callback("checkpoint"), Look(), output=tmp_path / "out")
    told = [record.getMessage() for record in caplog.records]
    assert told[0].endswith("-00000003 cannot be written: Not a directory; the training goes on, and older ones stand")
    assert seen == [3, 3]  # at the end of the epoch, and of the training


def test_a_number_that_json_has_not(fit, tmp_path):
    class Nothing:
        def eval_end(self, state):
            state.metrics["odd"] = float("nan")

    fit(Nothing(), hb.callback("metrics", file="logs/rows.jsonl"), output=tmp_path / "out")
    (row,) = [line for line in (tmp_path / "out/logs/rows.jsonl").read_text().splitlines() if "odd" in line]
    assert json.loads(row)["eval/odd"] is None


def test_a_copy_replaces_one_and_fails_without_harm(tagger, tmp_path, monkeypatch):
    from hookbrew.loop import save

    old, new = tagger(8), tagger(12)
    save(old, tmp_path / "copy")
    (tmp_path / "copy/more.txt").write_text("x")
    save(old, tmp_path / "copy")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["student.safetensors"]
    before = (tmp_path / "copy/student.safetensors").read_bytes()

    def full(self, folder):
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(new), "save_pretrained", full, raising=False)
    with pytest.raises(FolderError) as caught:
        save(new, tmp_path / "copy")
    assert str(caught.value) == f"the student cannot be written to {tmp_path}/copy: No space left on device"
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]
    assert (tmp_path / "copy/student.safetensors").read_bytes() == before
