"""hookbrew export: what comes out computes what the run's student does, without hookbrew; or nothing comes out."""

import json
import re
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from hookbrew.cli import main
from hookbrew.errors import DifferenceError, ExportError, FolderError
from hookbrew.export import export


def blocks(folder):
    """The Python of a model card."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def pasted(monkeypatch):
    """pasted(folder): the names that the card's code makes, run in its folder."""

    def run(folder):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "path", [*sys.path])
        space = {}
        for block in blocks(folder):
            exec(block, space)
        return space

    return run


def beside(folder):
    """What else is in the folder that it is in."""
    return {path.name for path in folder.parent.iterdir()} - {folder.name}


def test_safetensors(trained, known, tmp_path, pasted):
    made = export(trained("net"), tmp_path / "out", known=known)
    assert (made.format, made.compared) == ("safetensors", "outputs")
    assert made.relative <= 1e-6
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "export.json", "student.safetensors"}
    assert beside(tmp_path / "out") == set()
    weights, final = (load_file(path / "student.safetensors") for path in (tmp_path / "out", trained("net") / "final"))
    assert weights.keys() == final.keys()
    assert all(torch.equal(weights[name], final[name]) for name in final)
    assert pasted(tmp_path / "out")["outputs"].shape == (4, 3)


def test_a_program_of_torch_export(trained, known, tmp_path, pasted):
    made = export(trained("cnn"), tmp_path / "out", format="torch-export", known=known)
    assert made.inputs == {"input": {"dtype": "float32", "shape": ["batch", 1, 8, 9]}}
    assert made.relative <= 1e-6
    assert made.batches == 4  # 3 of the data, and one sample
    assert pasted(tmp_path / "out")["outputs"]["output"].shape == (2, 3)


def test_onnx(trained, known, tmp_path, pasted):
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    made = export(trained("net"), tmp_path / "out", format="onnx", known=known)
    assert [table["shape"] for table in made.inputs.values()] == [["batch", "length"]] * 2
    assert made.relative <= 1e-4
    space = pasted(tmp_path / "out")
    ones = space["np"].ones((7, 11), "int64")
    assert space["student"](input_ids=ones, attention_mask=ones)["output"].shape == (7, 3)
    text = (tmp_path / "out/student.onnx").read_bytes()
    assert b"exportland.py" not in text  # no path of the machine that made it


def test_the_card_and_the_facts(trained, known, tmp_path):
    run = trained("net", "taught", teacher={"factory": "exportland:Net", "width": 12}, losses=[{"type": "kd_ce"}])
    export(run, tmp_path / "out", checkpoint="best", known=known)
    text = (tmp_path / "out/README.md").read_text()
    best = json.loads((run / "best/metrics.json").read_text())
    for part in (
        "# Net, distilled",
        "checkpoint best",
        "- student: `exportland:Net`",
        "- teacher: `exportland:Net` with `width = 12`",
        "- loss `kd_ce`, weight 1.0",
        "- data `exportland:texts`, evaluated on `exportland:texts` with `seed = 1`",
        f"| accuracy | {best['metrics']['accuracy']:.4f} |",
        "4 batches: outputs differ by",
        f"torch {torch.__version__}",
    ):
        assert part in text
    facts = json.loads((tmp_path / "out/export.json").read_text())
    assert facts["checkpoint"] == "best"
    assert facts["files"] == {"student.safetensors": (tmp_path / "out/student.safetensors").stat().st_size}


@pytest.mark.slow
def test_a_checkpoint_of_the_training(trained, known, tmp_path):
    run = trained("net")
    made = export(run, tmp_path / "out", checkpoint="step 2", known=known)
    assert made.checkpoint == "step 2"
    there = load_file(run / "checkpoints/step-00000002/student.safetensors")
    weights, final = load_file(tmp_path / "out/student.safetensors"), load_file(run / "final/student.safetensors")
    assert all(torch.equal(weights[name], there[name]) for name in there)
    assert not all(torch.equal(weights[name], final[name]) for name in final)


@pytest.mark.slow
def test_several_outputs_in_a_dataclass(trained, known, tmp_path):
    made = export(trained("several"), tmp_path / "out", format="torch-export", known=known)
    assert made.outputs == ["logits", "hidden.0", "hidden.1"]


@pytest.mark.slow
def test_an_axis_that_the_model_fixes(trained, known, tmp_path):
    made = export(trained("sized"), tmp_path / "out", format="torch-export", known=known)
    assert made.inputs["input_ids"]["shape"] == ["batch", 5]
    assert made.notes == ["The model does not let axis 1 of input_ids vary: it is 5, always."]
    assert made.notes[0] in (tmp_path / "out/README.md").read_text()


def test_what_no_graph_can_do(trained, known, tmp_path):
    with pytest.raises(ExportError, match=r"^torch.export cannot trace this student: GuardOnDataDependent.*"):
        export(trained("choosy"), tmp_path / "out", format="torch-export", known=known)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_half_precision(trained, known, tmp_path, pasted):
    run = trained("half", train={"steps": 3, "device": "cpu", "precision": "fp32"})
    made = export(run, tmp_path / "out", format="torch-export", known=known)
    assert made.relative <= 1e-6
    whole = export(run, tmp_path / "whole", dtype="fp32", known=known)
    assert whole.notes == ["Converted to fp32, and compared with the run's student converted alike."]
    assert load_file(tmp_path / "whole/student.safetensors")["head.weight"].dtype == torch.float32
    assert pasted(tmp_path / "whole")["outputs"].dtype == torch.float32


@pytest.mark.slow
def test_a_class_that_needs_hookbrew(trained, known, tmp_path):
    made = export(trained("guarded"), tmp_path / "out", known=known)
    assert (made.compared, made.batches) == ("weights", 0)
    assert "The class of the student cannot be imported without hookbrew" in (tmp_path / "out/README.md").read_text()


def test_outputs_that_differ_leave_nothing(trained, known, tmp_path, land):
    run, out = trained("net"), tmp_path / "out"
    out.mkdir()
    (out / "export.json").write_text('{"files": {"student.onnx": 1}}')
    (out / "student.onnx").write_text("x")
    text = (land / "exportland.py").read_text()
    try:
        (land / "exportland.py").write_text(text.replace("return self.head(", "return 1.01 * self.head("))
        with pytest.raises(DifferenceError, match=r"^output 'output' of the export differs .* 1e-06 is a") as error:
            export(run, out, overwrite=True, known=known)
    finally:
        (land / "exportland.py").write_text(text)
    assert error.value.exit_code == 77
    assert {path.name for path in out.iterdir()} == {"export.json", "student.onnx"}
    assert beside(out) == set()


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("net", {"checkpoint": "bset"}, r"has no checkpoint 'bset'; did you mean 'best'\?$"),
        ("net", {"checkpoint": "step 9"}, r"has no checkpoint 'step 9'; did you mean 'step [23]'\?$"),
        (
            "cnn",
            {"checkpoint": "best"},
            r'keeps no best student: it has no callback "best"; one of: final, step 2',
        ),
        ("net", {"format": "onxx"}, r"^there is no format 'onxx'; did you mean 'onnx'\?$"),
        ("net", {"dtype": "fp31"}, r"^there is no dtype 'fp31'; did you mean 'fp32'\?$"),
        ("net", {"stage": "last"}, r"^there is no stage 'last'; the run has no stages$"),
        (
            "net",
            {"format": "transformers"},
            r"^the student is a Net, which is no model of transformers; use",
        ),
        ("net", {"batches": 0}, r"^batches is 0; at least 1 is compared$"),
        ("net", {"tolerance": -1.0}, r"^tolerance is -1.0; expected 0 or more$"),
    ],
)
def test_mistakes(trained, known, tmp_path, name, arguments, said):
    with pytest.raises(ExportError, match=said):
        export(trained(name), tmp_path / "out", known=known, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_no_run(trained, known, tmp_path):
    run = trained("net")
    with pytest.raises(FolderError, match=r"there is no run .*/nett; did you mean 'net'\?$"):
        export(run.with_name("nett"), tmp_path / "out", known=known)


def test_onnx_that_is_not_installed(trained, known, tmp_path, monkeypatch):
    from hookbrew.export import traced

    monkeypatch.setattr(traced, "NEEDS", ("onnx_that_nobody_has",))
    with pytest.raises(ExportError, match=r'not installed: pip install "hookbrew\[onnx\]"$'):
        export(trained("net"), tmp_path / "out", format="onnx", known=known)


def test_weights_of_another_student(trained, known, tmp_path):
    with pytest.raises(ExportError, match=r"final are not of the student that resolved.toml makes: .* size mismatch"):
        export(trained("net"), tmp_path / "out", sets=["student.width=9"], known=known)


@pytest.mark.slow
def test_the_command(trained, tmp_path):
    run = trained("cnn")
    done = CliRunner().invoke(main, ["export", str(run), "--to", str(tmp_path / "out"), "--json"], prog_name="hookbrew")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads((tmp_path / "out/export.json").read_text())
    again = CliRunner().invoke(main, ["export", str(run), "--to", str(tmp_path / "out")], prog_name="hookbrew")
    assert again.exit_code == 2
    assert again.stderr.endswith("out exists already; give another, or replace an earlier export with --overwrite\n")


def test_the_help_imports_no_torch():
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom hookbrew.cli import main\n"
        "done = CliRunner().invoke(main, ['export', '--help'], standalone_mode=False)\n"
        "assert 'fresh process' in done.output and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_formats_of_the_command_are_those_of_the_package():
    from hookbrew.cli import export as command
    from hookbrew.export import FORMATS

    assert sys.modules["hookbrew.cli.export"].FORMATS == FORMATS, command
