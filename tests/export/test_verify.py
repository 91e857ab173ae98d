"""What counts as a difference, which axes are free, and how a factory is spelled."""

import datetime
import math

import pytest
import torch

from hookbrew.config import Factory
from hookbrew.errors import DifferenceError, ExportError
from hookbrew.export import axes, spelling
from hookbrew.export.fresh import flat
from hookbrew.export.source import require_tensors
from hookbrew.export.verify import Difference, compared, require_small


def test_differences_are_relative_to_the_size_of_the_output():
    ours = [{"a": torch.tensor([1.0, -4.0]), "b": torch.tensor([0.5])}]
    theirs = [{"a": torch.tensor([1.0, -4.2]), "b": torch.tensor([0.4])}]
    found = compared(ours, theirs)
    assert (found.absolute, found.relative) == (pytest.approx(0.2), pytest.approx(0.2))
    assert found.output == "b"
    assert compared(ours, ours) == Difference(0.0, 0.0, "a")


@pytest.mark.parametrize(
    ("ours", "theirs", "absolute"),
    [
        ([math.nan, 1.0], [math.nan, 1.0], 0.0),
        ([math.inf, 1.0], [math.inf, 1.0], 0.0),
        ([math.inf, 1.0], [-math.inf, 1.0], math.inf),
        ([1.0], [math.nan], math.inf),
        ([math.nan], [1.0], math.inf),
        ([], [], 0.0),
        ([0.0], [0.25], 0.25),
    ],
)
def test_numbers_that_are_not_finite(ours, theirs, absolute):
    found = compared([{"a": torch.tensor(ours)}], [{"a": torch.tensor(theirs)}])
    assert found.absolute == absolute


def test_other_outputs():
    one = {"logits": torch.zeros(2, 3)}
    with pytest.raises(DifferenceError, match=r"^the export gives scores; the run's student logits$"):
        compared([one], [{"scores": torch.zeros(2, 3)}])
    with pytest.raises(DifferenceError, match=r"^output 'logits' of the export is \(2, 4\), and .* \(2, 3\)$"):
        compared([one], [{"logits": torch.zeros(2, 4)}])


def test_a_difference_that_is_too_large():
    require_small(Difference(1.0, 1e-6, "a"), 1e-6)
    with pytest.raises(DifferenceError, match=r"^output 'a' of .* by 2e-06 of .* \(1\), and 1e-06 is allowed; why$"):
        require_small(Difference(1.0, 2e-6, "a"), 1e-6, "why")


def test_outputs_by_name():
    a, b = torch.ones(1), torch.zeros(1)
    assert flat(a) == {"output": a}
    assert flat((a, [b, None])) == {"output.0": a, "output.1.0": b}
    assert flat({"logits": a, "states": (b,), "cache": object()}) == {"logits": a, "states.0": b}
    assert flat(torch.max(torch.ones(2, 2), 1)).keys() == {"output.0", "output.1"}
    assert flat("text") == {}


def batch(samples, length):
    return {
        "ids": torch.ones(samples, length, dtype=torch.int64),
        "image": torch.rand(samples, 3, 8),
        "scale": torch.tensor(2.0),
    }


def test_free_axes():
    assert axes.free([batch(4, 6), batch(3, 6)]) == {"ids": [0, 1], "image": [0], "scale": []}
    assert axes.free([batch(4, 1)]) == {"ids": [0], "image": [0], "scale": []}


def test_the_example_confuses_no_two_axes():
    traced = axes.example(batch(1, 2), {"ids": [0, 1], "image": [0], "scale": []})
    assert [tuple(tensor.shape) for tensor in traced.values()] == [(4, 2), (4, 3, 8), ()]


def test_variants():
    free = {"ids": {0: "batch", 1: "length"}, "image": {0: "batch"}}
    one, short, masked = axes.variants([batch(4, 6)], free, "ids")
    assert [tuple(tensor.shape) for tensor in one.values()] == [(1, 6), (1, 3, 8), ()]
    assert [tuple(tensor.shape) for tensor in short.values()] == [(4, 3), (4, 3, 8), ()]
    assert masked["ids"].sum(1).tolist() == [3, 6, 3, 6]


def test_batches_that_fit():
    traced, free = batch(4, 6), {"ids": {0: "batch"}, "image": {0: "batch"}}
    assert [len(b["ids"]) for b in axes.fitting([batch(2, 6), batch(4, 5)], traced, free)] == [2]


def test_a_factory_as_python():
    config = {"factory": "transformers:BertConfig", "sizes": [1, 2.5, math.inf], "when": datetime.date(2026, 1, 2)}
    text = spelling.loading(
        Factory(factory="transformers:BertConfig", arguments={"config": config, "deep": {"a": True}})
    )
    space = {}
    assert text.splitlines()[:3] == ["import datetime", "import transformers", ""]
    assert "float('inf')" in text
    exec(text, space)
    assert space["student"].config.when == datetime.date(2026, 1, 2)


def test_what_is_no_tensor():
    with pytest.raises(ExportError, match=r"^the student gets 'text', a str; what is exported takes tensors only$"):
        require_tensors({"text": "hello"})
