"""The short Python call, as the README shows it."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import hookbrew as hb
from hookbrew.errors import ConfigError, DataError, FolderError


@pytest.fixture
def pair(tagger):
    return tagger(12), tagger(8)


def test_a_fit(pair, batches, pack):
    teacher, student = pair
    before = [p.detach().clone() for p in teacher.parameters()]
    run = hb.Distillation(
        teacher,
        student,
        losses=[
            hb.loss("kd_ce", temperature=8),
            hb.loss("hidden_mse", student="blocks[0:2]", teacher="blocks[0,1]", projection="linear"),
        ],
        catalogue=pack,
    )
    data = batches([3, 2], [4, 1])
    state = run.fit(
        data,
        optimizer=torch.optim.AdamW(student.parameters(), 1e-2),
        epochs=3,
        lr_schedule=hb.schedule("linear", warmup=0.1),
        evaluate=data,
        callbacks=[hb.callback("evaluate", metrics=["accuracy", "loss"])],
    )
    assert state.step == 6
    assert set(state.metrics) == {"accuracy", "loss"}
    assert all(map(torch.equal, before, teacher.parameters()))
    assert all(p.grad is None for p in teacher.parameters())


def test_the_installed_pack_is_found(pair):
    teacher, student = pair
    assert hb.Distillation(teacher, student, [hb.loss("kd_ce")]).objective.sources[0].name == "kd_ce"


def test_a_default_optimizer(pair, batches, pack):
    teacher, student = pair
    before = student.head.weight.detach().clone()
    hb.Distillation(teacher, student, [hb.loss("kd_ce")], catalogue=pack).fit(batches([3, 2]), steps=1)
    assert not torch.equal(before, student.head.weight)


def test_tuples_and_plain_modules(pack):
    teacher, student = nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3))
    data = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.randn(8, 4), torch.arange(8) % 3), batch_size=4, shuffle=True
    )
    losses = [hb.loss("kd_ce"), hb.loss("ce")]
    run = hb.Distillation(teacher, student, losses, fields=["input", "labels"], catalogue=pack)
    assert run.fit(data, epochs=2).samples_seen == 16


def test_files_go_into_output(pair, batches, pack, tmp_path):
    teacher, student = pair
    run = hb.Distillation(teacher, student, [hb.loss("kd_ce")], catalogue=pack)
    callbacks = [hb.callback("metrics"), hb.callback("weights")]
    run.fit(batches([3, 2]), epochs=1, output=tmp_path / "out", callbacks=callbacks)
    (row,) = (tmp_path / "out/metrics.jsonl").read_text().splitlines()
    assert json.loads(row)["step"] == 1
    assert set(load_file(tmp_path / "out/final/student.safetensors")) == set(student.state_dict())
    with pytest.raises(FolderError, match="out exists already; give another"):
        run.fit(batches([3, 2]), epochs=1, output=tmp_path / "out")


def test_a_callback_that_writes_needs_output(pair, batches, pack):
    run = hb.Distillation(*pair, [hb.loss("kd_ce")], catalogue=pack)
    with pytest.raises(FolderError) as caught:
        run.fit(batches([3, 2]), epochs=1, callbacks=[hb.callback("weights")])
    assert str(caught.value) == (
        "callback 'weights' writes into the run folder, and there is none: give one with output="
    )


def test_a_misspelt_option(pair, pack):
    with pytest.raises(ConfigError) as caught:
        hb.Distillation(*pair, [hb.loss("kd_ce", temprature=8)], catalogue=pack)
    assert str(caught.value) == "loss 'kd_ce': temprature: unknown key; did you mean 'temperature'?"


@pytest.mark.parametrize("length", [{}, {"epochs": 1, "steps": 1}])
def test_one_length(pair, batches, pack, length):
    run = hb.Distillation(*pair, [hb.loss("kd_ce")], catalogue=pack)
    with pytest.raises(ConfigError, match="epochs or steps"):
        run.fit(batches([3, 2]), **length)


def test_evaluation_without_labels(pair, batches, pack):
    run = hb.Distillation(*pair, [hb.loss("kd_ce")], catalogue=pack)
    bare = [{k: v for k, v in batch.items() if k not in ("labels", "tags")} for batch in batches([3, 2])]
    with pytest.raises(DataError, match="callback 'evaluate' needs labels in the evaluation data; the batch has"):
        run.fit(batches([3, 2]), epochs=1, evaluate=bare, callbacks=[hb.callback("evaluate")])


def test_self_distillation_with_one_model(tagger, batches, pack):
    student = tagger(8, dropout=0.5)
    run = hb.Distillation(student, student, [hb.loss("kd_ce"), hb.loss("ce")], catalogue=pack)
    assert run.fit(batches([3, 2]), steps=2).step == 2


def refused(call):
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value).splitlines()


def test_keys_of_train_are_checked_as_in_a_file(pair, batches, pack):
    run = hb.Distillation(*pair, [hb.loss("kd_ce")], catalogue=pack)
    wrong = {"precision": "fp8", "acumulate": 2, "log_every": 0}
    assert refused(lambda: run.fit(batches([3, 2]), epochs=1, **wrong)) == [
        "fit: acumulate: unknown key; did you mean 'accumulate'?",
        "fit: precision: the string 'fp8' is not a choice; one of: auto, bf16, fp16, fp32",
        "fit: log_every: must be >= 1: 0",
    ]


def test_evaluating_on_nothing(pair, batches, pack):
    run = hb.Distillation(*pair, [hb.loss("kd_ce")], catalogue=pack)
    given = {"evaluate_every": 2, "callbacks": [hb.callback("evaluate")]}
    assert refused(lambda: run.fit(batches([3, 2]), epochs=1, **given)) == [
        "fit: evaluate_every: there is no evaluation data: give it with evaluate=",
        "fit: callback 'evaluate': there is no evaluation data: give it with evaluate=",
    ]


def test_a_loss_that_is_no_request(pair, pack):
    (line,) = refused(lambda: hb.Distillation(*pair, [nn.MSELoss()], catalogue=pack))
    assert line == "losses[0]: expected hb.loss(...), got MSELoss()"


def test_evaluation_data_that_does_not_fit_is_found_before_training(pair, batches, pack, tmp_path):
    student = pair[1]
    before = student.head.weight.detach().clone()
    run = hb.Distillation(*pair, [hb.loss("kd_ce")], catalogue=pack)
    bare = [{"labels": torch.zeros(2, dtype=torch.long)}]
    with pytest.raises(DataError, match="the student gets 'input_ids'") as caught:
        run.fit(batches([3, 2]), epochs=1, evaluate=bare, output=tmp_path / "out")
    assert caught.value.__notes__ == ["raised by the first batch of the evaluation data"]
    assert torch.equal(student.head.weight, before)


def test_a_fit_that_never_began_leaves_no_folder(pair, batches, pack, tmp_path):
    run = hb.Distillation(*pair, [hb.loss("kd_ce")], catalogue=pack)
    with pytest.raises(DataError):
        run.fit([{"x": torch.ones(2, 3)}], epochs=1, output=tmp_path / "out")
    assert run.fit(batches([3, 2]), epochs=1, output=tmp_path / "out").step == 1


def test_a_folder_that_cannot_be_made(pair, batches, pack, tmp_path):
    (tmp_path / "file").write_text("")
    run = hb.Distillation(*pair, [hb.loss("kd_ce")], catalogue=pack)
    with pytest.raises(FolderError, match=r"file/out cannot be made: .*file is not a folder that can be written to"):
        run.fit(batches([3, 2]), epochs=1, output=tmp_path / "file/out")
