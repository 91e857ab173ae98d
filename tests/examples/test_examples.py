"""The examples are real: their data is what the packages hold, and their files pass `check`."""

import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import hookbrew as hb
from hookbrew.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def trec():
    """The module beside the configurations."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        import trec
    finally:
        sys.path.remove(str(EXAMPLES))
    return trec


TAUGHT = ("quickstart", "short", "theseus")
"""The files with a teacher."""


def texts(samples):
    return {tuple(sample["input_ids"].tolist()) for sample in samples}


def test_the_data(trec):
    labelled, unlabelled, held_out = trec.labelled(), trec.unlabelled(), trec.held_out()
    assert [len(samples) for samples in (labelled, unlabelled, held_out)] == [600, 4331, 1050]
    assert texts(labelled) < texts(unlabelled)
    assert all(set(sample) == {"input_ids", "attention_mask"} for sample in unlabelled)
    assert {int(sample["labels"]) for sample in held_out} == set(range(6))


def test_settings_were_chosen_without_the_held_out(trec):
    """The development questions are spared from training on request, and the held-out ones are in neither."""
    everything, spared = set(trec.training(spare=False)), set(trec.training(spare=True))
    assert spared < everything
    assert len(everything - spared) == len(trec.development()) == 1057
    assert not texts(trec.unlabelled()) & texts(trec.held_out())


def test_the_teacher_looks_once(trec):
    seen = []

    class Teacher(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            seen.append(len(input_ids))
            logits = (input_ids * attention_mask).sum(1, keepdim=True).float()
            return trec.SequenceClassifierOutput(logits=logits)

    teacher = trec.Remembered(Teacher())
    ids, mask = torch.tensor([[1, 2, 0], [3, 4, 5]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    first = teacher(ids, mask).logits
    wider = torch.nn.functional.pad
    again = teacher(wider(ids, (0, 2)), wider(mask, (0, 2))).logits
    assert torch.equal(first, again)
    assert seen == [2]


def test_the_student_that_has_no_teacher(trec):
    """It is cut as that of the quickstart is, and padding changes nothing for it."""
    student = trec.small().eval()
    assert (student.config.num_hidden_layers, student.config.hidden_size, student.config.intermediate_size) == (
        2,
        128,
        512,
    )
    ids, mask = torch.tensor([[7, 8, 9]]), torch.tensor([[1, 1, 1]])
    wider = torch.nn.functional.pad
    longer = student(wider(ids, (0, 5)), wider(mask, (0, 5))).logits
    assert torch.allclose(student(ids, mask).logits, longer, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["teacher", "alone", "quickstart", "short", "theseus"])
def test_the_files_pass_check(trec, tmp_path, name):
    sets = ["-s", f"output={tmp_path / 'out'}"]
    if name in TAUGHT:
        trec.minilm().save_pretrained(tmp_path / "teacher")
        sets += ["-s", f"teacher.folder={tmp_path / 'teacher'}"]
    done = CliRunner().invoke(main, ["check", str(EXAMPLES / f"{name}.toml"), *sets], prog_name="hookbrew")
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "out").exists()


def test_a_third_of_the_teacher(trec, tmp_path, monkeypatch):
    """Its layers and its head, and two steps in which the others stand in; what is left is plain."""
    monkeypatch.chdir(tmp_path)
    whole = trec.minilm().eval()
    whole.save_pretrained("teacher")
    third = hb.student(trec.teacher("teacher", otherwise=""), keep={"bert.encoder.layer": [0, 3]}).eval()
    ids = torch.arange(1000, 1006).view(1, 6)
    hidden = whole.bert.embeddings(ids)
    for layer in whole.bert.encoder.layer[::3]:
        hidden = layer(hidden, None)
    assert torch.allclose(third(ids).logits, whole.classifier(whole.bert.pooler(hidden)), rtol=0, atol=1e-5)
    sets = [f"teacher.folder={tmp_path / 'teacher'}", "train.epochs=1"]
    sets += ["data.train={factory='trec:labelled', count=32}", f"output={tmp_path / 'out'}"]
    sets += ["data.evaluate={factory='trec:labelled', count=16}", "train.log_every=1"]
    arguments = [part for each in sets for part in ("-s", each)]
    done = CliRunner().invoke(main, ["run", str(EXAMPLES / "theseus.toml"), *arguments], prog_name="hookbrew")
    assert done.exit_code == 0, done.output
    left = type(whole).from_pretrained(tmp_path / "out/final")
    assert left.config.num_hidden_layers == 2


@pytest.mark.slow
def test_the_quickstart(tmp_path):
    import subprocess

    command = [sys.executable, str(EXAMPLES / "quickstart.py"), "--output", str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split("│") for line in done.stdout.splitlines() if line.startswith("│")]
    scores = [float(row[2]) for row in rows]
    teacher, alone, distilled = scores
    assert teacher > distilled > alone + 0.05
