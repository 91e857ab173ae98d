"""Whose student it is, with which weights, and what it is tried on."""

import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from hookbrew.errors import CheckpointError, ExportError
from hookbrew.export.source import opened, tried
from hookbrew.export.weights import Origin, fill, pretrained
from hookbrew.store import Store
from tests.export.conftest import TOKENS


def weights(run, checkpoint, known, **more):
    with opened(run, checkpoint, more.get("stage"), (), catalogue=known) as found:
        return found.student.state_dict()


def test_the_student_of_a_stage(trained, known):
    stages = [{"name": "one", "seed": 1}, {"name": "two", "seed": 2, "optimizer": {"lr": 0.1}}]
    run = trained("net", "staged", stages=stages)
    for stage, where in ((None, "two"), ("two", "two"), ("one", "one")):
        there = load_file(run / where / "final/student.safetensors")
        assert all(torch.equal(there[name], t) for name, t in weights(run, "final", known, stage=stage).items())
    with pytest.raises(ExportError, match=r"^there is no stage 'tow'; did you mean 'two'\?$"):
        weights(run, "final", known, stage="tow")


def test_results(trained, known):
    """Those of this student, and of none before it."""
    for checkpoint, keys in (("final", {"accuracy"}), ("best", {"accuracy"}), ("step 3", set())):
        with opened(trained("net"), checkpoint, None, (), catalogue=known) as found:
            assert found.results.keys() == keys
            assert not found.student.training


def test_the_data_of_tasks(trained, known):
    data = [{**TOKENS, "evaluate": {"factory": "exportland:texts", "length": length}} for length in (6, 3)]
    tasks = {name: {"data": part, "losses": [{"type": "ce"}]} for name, part in zip("ab", data, strict=True)}
    with opened(trained("net", "tasked", tasks=tasks), "final", None, (), catalogue=known) as found:
        batches, notes = tried(found, 4)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(4, 6), (4, 6), (4, 3), (4, 3)]
    assert notes == []


def test_a_sharded_checkpoint(trained, known, tmp_path):
    """As FSDP2 leaves one: shards in place of student.safetensors."""
    from torch.distributed.checkpoint.state_dict_saver import save

    with opened(trained("net"), "final", None, (), catalogue=known) as found:
        student = found.student
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    store = Store(tmp_path)
    fresh = store.begin(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save({f"student.{name}": t for name, t in before.items()}, checkpoint_id=fresh / "shards", no_dist=True)
    place = store.finish(5, {}, {})
    torch.nn.init.zeros_(student.head.weight)
    fill(student, Origin("step 5", place))
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


def test_a_checkpoint_that_is_damaged(trained, known, tmp_path):
    run = shutil.copytree(trained("net"), tmp_path / "net")
    path = run / "checkpoints/step-00000003/student.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"is damaged: its checksum is another$"):
        weights(run, "step 3", known)


def test_a_run_that_is_not_done(trained, known, tmp_path):
    run = shutil.copytree(trained("net"), tmp_path / "net")
    shutil.rmtree(run / "final")
    (run / "status.json").write_text('{"status": "preempted"}')
    said = r"has no checkpoint 'final' \(the run is preempted, and it is written at the end\); one of: best, step 2, "
    with pytest.raises(ExportError, match=said):
        weights(run, "final", known)


def test_tied_weights_that_are_stored_once(trained, known, tmp_path):
    transformers = pytest.importorskip("transformers")
    size = {"vocab_size": 9, "n_embd": 4, "n_layer": 1, "n_head": 1, "bos_token_id": 1, "eos_token_id": 1}
    one, other = (transformers.GPT2LMHeadModel(transformers.GPT2Config(**size)) for _ in range(2))
    one.save_pretrained(tmp_path)
    pretrained(other, tmp_path)
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in one.state_dict().items())
    state = load_file(tmp_path / "model.safetensors")
    del state["transformer.ln_f.bias"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match=r"are not of the student that resolved.toml makes: transformer.ln_f.bias$"):
        pretrained(other, tmp_path)
