"""What is trained beside the student is in its checkpoints, and never in the student."""

import copy

import torch
from safetensors.torch import load_file, load_model
from torch import nn

import hookbrew as hb


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body, self.head = nn.Linear(5, width), nn.Linear(width, 3)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)))


def distillation(student):
    torch.manual_seed(1)
    losses = [
        hb.loss("hidden_mse", student="body", teacher="body", projection="linear"),
        hb.loss("vid", student="{body,head}", teacher="{body,head}", mask=False, projection="linear"),
        hb.loss("crd", student="body", teacher="body", samples=12, dimension=4),
    ]
    return hb.Distillation(Net(6), student, losses)


def batches():
    rows = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    return [{"x": part, "index": number} for part, number in zip(rows.split(4), torch.arange(12).split(4), strict=True)]


def test_extras_are_in_the_checkpoint(tmp_path):
    torch.manual_seed(0)
    student = Net(4)
    fresh = copy.deepcopy(student)
    run = distillation(student)
    run.fit(batches(), epochs=2, callbacks=[hb.callback("checkpoint", every=4)], output=tmp_path / "run")
    folder = tmp_path / "run/checkpoints/step-00000004"
    assert load_file(folder / "student.safetensors").keys() == student.state_dict().keys()
    other = distillation(fresh)
    other.fit(batches(), steps=4)  # the same four steps
    expected = {name: value.clone() for name, value in other.objective.extras.state_dict().items()}
    assert any("memory_student" in name for name in expected), expected.keys()
    for value in other.objective.extras.state_dict().values():
        value.zero_()
    load_model(other.objective.extras, folder / "extras.safetensors")
    found = other.objective.extras.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_nothing_beside_the_student_writes_nothing(tmp_path):
    run = hb.Distillation(Net(6), Net(4), [hb.loss("kd_ce")])
    run.fit(batches(), epochs=1, callbacks=[hb.callback("checkpoint")], output=tmp_path / "run")
    assert not load_file(tmp_path / "run/checkpoints/step-00000003/extras.safetensors")
