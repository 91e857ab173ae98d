"""Students of real runs in every format: the same numbers in a fresh process, for batches they were not made with."""

import subprocess
import sys

import pytest
import torch

from hookbrew.errors import DifferenceError
from hookbrew.export import export
from hookbrew.export.fresh import flat
from hookbrew.export.source import opened
from hookbrew.export.verify import asked, compared
from tests.export.test_export import blocks

pytestmark = pytest.mark.slow

TOLERANCES = {"safetensors": 1e-6, "transformers": 1e-6, "torch-export": 1e-6, "onnx": 1e-4}
TEXTS = [(1, 1), (1, 5), (7, 11), (3, 24)]


def text(samples, length):
    """Tokens (B, L) with padding, each row at least one token long."""
    mask = (torch.arange(length)[None] < torch.randint(1, length + 1, (samples, 1))).long()
    return {"input_ids": torch.randint(1, 20, (samples, length)) * mask, "attention_mask": mask}


def called(student, batches):
    with torch.no_grad():
        return [flat(student(**batch)) for batch in batches]


def furthest(run, folder, batches, kind, known):
    """How far an export is from its run's student on other batches."""
    with opened(run, "final", None, (), catalogue=known) as found:
        ours = called(found.student, batches)
    theirs = asked(folder, blocks(folder)[0], batches, arrays=kind == "onnx").outputs
    return compared(ours, theirs).relative


@pytest.mark.parametrize("kind", list(TOLERANCES))
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_tokens(trained, known, tmp_path, name, kind):
    if kind == "onnx":
        pytest.importorskip("onnxscript", reason="needs the extra onnx")
    run = trained(name)
    made = export(run, tmp_path / "out", format=kind, known=known)
    assert made.relative <= TOLERANCES[kind]
    if kind in ("torch-export", "onnx"):
        assert [table["shape"] for table in made.inputs.values()] == [["batch", "length"]] * 2
        assert made.limits["length"] == ((1, 24) if name == "bert" else (1, None))
    batches = [text(*size) for size in TEXTS]
    assert furthest(run, tmp_path / "out", batches, kind, known) <= TOLERANCES[kind]


@pytest.mark.parametrize("kind", ["safetensors", "torch-export", "onnx"])
def test_images(trained, known, tmp_path, kind):
    if kind == "onnx":
        pytest.importorskip("onnxscript", reason="needs the extra onnx")
    run = trained("cnn")
    export(run, tmp_path / "out", format=kind, known=known)
    batches = [{"input": torch.rand(samples, 1, 8, 9)} for samples in (1, 3, 9)]
    assert furthest(run, tmp_path / "out", batches, kind, known) <= TOLERANCES[kind]


def test_the_mask_counts_in_onnx(trained, known, tmp_path):
    """What stands where the mask is 0 changes nothing; what it masks does."""
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    export(trained("bert"), tmp_path / "out", format="onnx", known=known)
    batch = text(4, 9)
    batch["attention_mask"][:, 6:] = 0
    other = {**batch, "input_ids": torch.where(batch["attention_mask"].bool(), batch["input_ids"], 7)}
    whole = {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}
    first, second, third = asked(
        tmp_path / "out", blocks(tmp_path / "out")[0], [batch, other, whole], arrays=True
    ).outputs
    assert torch.equal(first["logits"], second["logits"])
    assert not torch.allclose(first["logits"], third["logits"], atol=1e-4)


def test_the_commands_alone(configured, tmp_path):
    """A BERT from a real run of the command line, exported by it."""
    file = configured("bert", "commanded")
    for arguments in (["run", str(file), "--quiet"], ["export", str(file.parent / "runs/commanded"), "--to", "out"]):
        command = [sys.executable, "-m", "hookbrew", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert "4 batches in a fresh process without hookbrew: differs by " in done.stdout
    assert "of its size (1e-06 allowed)" in done.stdout
    assert (tmp_path / "out/config.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_a_student_that_its_configuration_does_not_say(trained, known, tmp_path):
    run = trained("factorised")
    with pytest.raises(DifferenceError) as error:
        export(run, tmp_path / "out", format="transformers", known=known)
    assert "what is loaded is another model: 'bert.encoder.layer.0.intermediate.dense.0.weight' is" in str(error.value)
    assert "use --format safetensors, torch-export or onnx" in str(error.value)
    assert list(tmp_path.iterdir()) == []
    assert export(run, tmp_path / "out", format="safetensors", known=known).relative <= 1e-6
    assert export(run, tmp_path / "program", format="torch-export", known=known).relative <= 1e-6
