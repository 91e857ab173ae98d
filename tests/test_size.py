"""The size of models: counted once, grouped, shared tensors named, two side by side."""

import copy

import pytest
import torch
from torch import nn

import hookbrew as hb
from hookbrew.size import compared, params


class Tied(nn.Module):
    """An embedding that is the head, too; blocks, one of which is wider; a frozen part and a buffer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 4)])
        self.norm = nn.BatchNorm1d(4)
        self.act = nn.ReLU()
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight
        self.norm.requires_grad_(False)


def table(found):
    return {row.path: row for row in found.rows}


def test_numbers():
    model = Tied()
    found = params(model)
    assert found.model == "Tied"
    assert found.whole.parameters == sum(p.numel() for p in model.parameters()) == 40 + 20 + 20 + 16 + 20 + 8
    assert found.whole.trained == found.whole.parameters - 8
    assert found.whole.buffers == sum(b.numel() for b in model.buffers()) == 9
    assert found.whole.bytes == 4 * found.whole.parameters + 4 * 8 + 8  # the counter of batches is an int64


def test_rows():
    rows = table(params(Tied()))
    assert [(path, row.count, row.parameters) for path, row in rows.items()] == [
        ("", 1, 124),
        ("embed", 1, 40),
        ("blocks", 1, 76),
        ("blocks[0:2]", 2, 20),
        ("blocks[2]", 1, 16),
        ("blocks[3]", 1, 20),
        ("norm", 1, 8),
        ("head", 1, 40),
    ]
    assert rows["norm"].trained == 0
    assert rows["embed"].shared == ("head.weight",)
    assert rows["head"].shared == ("embed.weight",)
    assert rows[""].shared == rows["blocks"].shared == ()


@pytest.mark.parametrize(("depth", "paths"), [(0, [""]), (1, ["", "embed", "blocks", "norm", "head"])])
def test_depth(depth, paths):
    assert list(table(params(Tied(), depth))) == paths


def test_modules_that_differ_in_what_is_trained_have_rows_of_their_own():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert list(table(params(model))) == ["", "[0:2]"]
    model[1].requires_grad_(False)
    assert list(table(params(model))) == ["", "[0]", "[1]"]


def test_precision_and_wrappers():
    model = nn.Linear(4, 4)
    assert params(copy.deepcopy(model).half()).whole.bytes == params(model).whole.bytes / 2
    assert params(torch.compile(model, backend="eager")).model == "Linear"
    with torch.device("meta"):
        assert params(nn.Linear(4, 4)).whole == params(model).whole


def test_text():
    assert str(hb.params(Tied(), depth=1)).splitlines() == [
        "module    class        parameters    share  trained  buffers   MiB  shared with",
        "model     Tied                124  100.0 %      116        9  0.00",
        "  embed   Embedding            40   32.3 %       40           0.00  head.weight",
        "  blocks  ModuleList           76   61.3 %       76           0.00",
        "  norm    BatchNorm1d           8    6.5 %        0        9  0.00",
        "  head    Linear               40   32.3 %       40           0.00  embed.weight",
    ]


def test_side_by_side():
    text = compared(params(nn.Linear(4, 4)), params(nn.Linear(4, 8)))
    assert [line.split() for line in text.splitlines()] == [
        ["student", "Linear", "teacher", "Linear", "teacher", "/", "student"],
        ["parameters", "20", "40", "2.00"],
        ["trained", "20", "40", "2.00"],
        ["buffers", "0", "0"],
        ["bytes", "80", "160", "2.00"],
    ]
