"""Published choices of layers, against what was published; and what is made of them."""

import re

import pytest
import torch
from torch import nn

import hookbrew as hb
from hookbrew.errors import SurgeryError
from hookbrew.surgery.choice import CHOICES, chosen

PUBLISHED = [
    ("first", 6, 12, [0, 1, 2, 3, 4, 5]),  # Patient KD, BERT 6 of 12
    ("last", 3, 12, [9, 10, 11]),
    ("uniform", 4, 12, [2, 5, 8, 11]),  # TinyBERT: every third, the last included
    ("uniform", 6, 12, [1, 3, 5, 7, 9, 11]),
    ("distilbert", 6, 12, [0, 2, 4, 7, 9, 11]),  # extract_distilbert.py
    ("distilbert", 3, 12, [0, 6, 11]),  # Shleifer & Rush 2020, BART 3 of 12
    ("minilm", 6, 12, [0, 2, 4, 6, 8, 10]),  # sentence-transformers, "every second layer"
]


@pytest.mark.parametrize(("name", "count", "total", "layers"), PUBLISHED)
def test_as_published(name, count, total, layers):
    assert chosen(name, count, total) == layers


@pytest.mark.parametrize("name", [name for name in CHOICES if name != "best"])
def test_every_count_gives_as_many_rising_layers(name):
    for total in range(1, 14):
        for count in range(1, total + 1):
            found = chosen(name, count, total)
            assert found == sorted({*found} & {*range(total)})
            assert len(found) == count
        assert chosen(name, total, total) == [*range(total)]


@pytest.fixture
def net():
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))


def test_a_student_by_a_choice():
    teacher = nn.Sequential(nn.Sequential(*(nn.Linear(4, 4) for _ in range(6))), nn.Linear(4, 2))
    student = hb.student(teacher, keep={"0": "uniform:3"})
    assert [layer.weight.tolist() for layer in student[0]] == [teacher[0][i].weight.tolist() for i in (1, 3, 5)]


def test_without_options_it_is_a_copy(transformer, logits):
    teacher, inputs = transformer("bert")
    student = hb.student(teacher)
    assert torch.equal(logits(student, inputs), logits(teacher, inputs))
    assert not {id(p) for p in student.parameters()} & {id(p) for p in teacher.parameters()}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("frist:3", "keep: no choice of layers is called 'frist'; did you mean 'first'?"),
        ("first", "keep: 'first' for 'a' is no choice of layers; write a list, or one like 'uniform:3'"),
        ("first:7", "keep: 'first:7' asks for 7 of the 6 layers of 'a'"),
        ("first:0", "keep: 'first:0' asks for 0 of the 6 layers of 'a'"),
        ("best:2", "keep: 'best:2' is measured, and there are no batches: give batches="),
    ],
)
def test_refused(net, wanted, message):
    with pytest.raises(SurgeryError, match=re.escape(message)):
        hb.student(nn.ModuleDict({"a": net}), keep={"a": wanted})


def test_a_choice_of_no_list(net):
    with pytest.raises(SurgeryError, match=r"keep: ModuleDict has no 'b'; its lists: a \(6\)"):
        hb.student(nn.ModuleDict({"a": net}), keep={"b": "first:3"})


def test_a_width_that_is_none(net):
    with pytest.raises(SurgeryError, match=r"width: no 'hiden'; did you mean 'hidden'\?"):
        hb.student(net, width={"hiden": 3})
