"""The whole comparison in Python: what it says, and that models are left as they were."""

import json
import re
from itertools import pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hookbrew.compare import compare, page, table
from hookbrew.compare.table import figures, large, times
from hookbrew.errors import DataError, HookbrewError


@pytest.fixture
def models(net):
    return {"teacher": net(8, seed=1).train(), "student": net(4, seed=2).train()}


def test_what_is_measured(models, batches):
    found = compare(models, batches(), rounds=3, sizes=[1, 7])
    teacher, student = found.models
    assert (teacher.name, teacher.kind, teacher.parameters) == ("teacher", "Net", 20 * 8 + 3 * 72 + 36)
    assert teacher.disk == teacher.weights == 4 * teacher.parameters
    assert not teacher.filed
    assert student.flops < teacher.flops
    assert [speed.size for speed in student.speeds] == [1, 7] == list(found.sizes)
    assert all(speed.memory > 0 and speed.latency.middle > 0 for one in found.models for speed in one.speeds)
    assert teacher.speeds[1].memory > student.speeds[1].memory
    assert (found.samples, found.facts["batches"], found.facts["whole"], found.facts["threads"]) == (35, 5, True, 1)
    assert found.notes == ()


def test_nothing_of_the_models_is_changed(models, batches):
    before = {name: {key: value.clone() for key, value in model.state_dict().items()} for name, model in models.items()}
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    compare(models, batches(), rounds=1, sizes=[1])
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    for name, model in models.items():
        assert all(module.training for module in model.modules())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert all(torch.equal(value, before[name][key]) for key, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())


class Memory(torch.nn.Module):
    """Computes each batch once."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.known = inner, {}

    def forward(self, input_ids, attention_mask):
        key = str(input_ids.tolist())
        if key not in self.known:
            self.known[key] = self.inner(input_ids, attention_mask)
        return self.known[key]


@pytest.mark.parametrize(("size", "many"), [(2, "0 of 4,736 operations"), (7, "no operation that counts")])
def test_a_model_that_remembers_is_told(models, batches, size, many):
    given = {"it": Memory(models["teacher"]), "other": models["student"]}
    found = compare(given, batches(5, 7), sizes=[size], rounds=1)
    (note,) = [note for note in found.notes if "times" in note]
    assert note == f"it: a batch seen before takes {many}; of what it remembers, times say nothing"


class Casts(TorchDispatchMode):
    """How often a tensor of some shape is cast."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.made = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.made += func is torch.ops.aten._to_copy.default and tuple(args[0].shape) == self.shape
        return func(*args, **(kwargs or {}))


def test_each_forward_that_is_timed_casts_the_weights(net, batches):
    """As each does for itself in use: autocast keeps what it has cast of trained weights as long as it lasts."""
    model, made = net(5), []

    def note(*_):
        made.append(casts.made)

    with Casts(tuple(model.head.weight.shape)) as casts, model.register_forward_hook(note):
        compare({"it": model}, batches(2, 3), sizes=[3], rounds=3, precision="bf16")
    assert [after - before for before, after in pairwise(made)][-3:] == [1, 1, 1]


def test_sizes_for_which_there_is_too_little(models, batches):
    found = compare(models, batches(), rounds=1)
    assert found.sizes == (1,)
    assert found.notes[0] == "no speed at batch size 8: there are not as many samples"
    with pytest.raises(DataError, match="there is no batch of 8 samples in the data; ask for smaller ones"):
        compare(models, batches(), rounds=1, sizes=[8])


def test_a_part_of_the_data_is_said_to_be_one(models, batches):
    found = compare(models, batches(), sizes=[], limit=2)
    assert (found.samples, found.facts["whole"]) == (14, False)
    assert "14 samples, the first 2 batches;" in str(found)


def test_mistakes(models, batches):
    with pytest.raises(HookbrewError, match=r"^compare takes no 'round'; did you mean 'rounds'\?$"):
        compare(models, batches(), round=3)
    with pytest.raises(HookbrewError, match=r"^rounds must be >= 1: 0$"):
        compare(models, batches(), rounds=0)
    with pytest.raises(HookbrewError, match="there is no model to compare"):
        compare({}, batches())
    with pytest.raises(HookbrewError, match="on one device, and 'teacher' on cpu and 'student' on meta"):
        compare({**models, "student": models["student"].to("meta")}, batches())


def test_tied_weights_are_counted_once(net, batches):
    model = net(6)
    model.layers[1].weight = model.layers[0].weight
    one = compare({"one": model}, batches(), sizes=[]).models[0]
    assert one.disk == one.weights == 4 * one.parameters == 4 * (20 * 6 + 3 * 42 - 36 + 28)


def test_weights_that_are_parts_of_one_memory_are_all_counted(net, batches):
    model = net(6)
    whole = torch.randn(2, 6)
    model.layers[0].bias, model.layers[1].bias = (torch.nn.Parameter(part) for part in whole)
    one = compare({"one": model}, batches(), sizes=[]).models[0]
    assert one.disk == one.weights == 4 * one.parameters


def test_json_has_all_numbers_and_no_nan(models, batches):
    found = compare(models, batches(), rounds=2, sizes=[1])
    data = json.loads(found.as_json())
    assert (data["comparison"], [one["name"] for one in data["models"]]) == (1, ["teacher", "student"])
    student = data["models"][1]
    assert student["quality"]["ece"] == found.models[1].quality.ece
    assert student["speeds"][0]["ratio"]["middle"] == found.models[1].speeds[0].ratio.middle
    assert len(student["similarity"]["values"]) == 4
    assert any(each["accuracy"] is None for each in student["quality"]["bins"])


def test_a_table_to_paste(models, batches):
    found = compare({"a|b": models["teacher"], "student_1": models["student"]}, batches(), rounds=2, sizes=[1])
    head, rule, first, *_ = table.markdown(found).splitlines()
    assert head == r"|  | a\|b | student\_1 |"
    assert rule == "| :-- | --: | --: |"
    assert first == f"| parameters | 412 | {found.models[1].parameters} (0.39x) |"
    assert "1 thread, fp32" in table.markdown(found)
    assert (
        len(
            {line.count("|") - line.count(r"\|") for line in table.markdown(found).splitlines() if line.startswith("|")}
        )
        == 1
    )


def test_a_page_is_whole(models, batches):
    found = compare({"<b>teacher": models["teacher"], "student": models["student"]}, batches(), rounds=2, sizes=[1, 7])
    text = page.page(found)
    assert "<b>teacher" not in text
    assert "&lt;b&gt;teacher" in text
    assert text.count("<figure") == 6  # five plots and a map
    assert text.count("data:image/png;base64,") == 1
    assert not re.findall(r"<(?:script|link|iframe)|(?:src|href)=\"(?!data:|#)", text)
    alone = page.page(compare({"one": models["student"]}, batches(), sizes=[]))
    assert alone.count("<figure") == 1


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (1930.4, "1,930"),
        (193.04, "193"),
        (19.34, "19.3"),
        (1.934, "1.93"),
        (0.0193, "0.0193"),
        (2e-7, "2.00e-07"),
        (0, "0"),
    ],
)
def test_figures(value, told):
    assert figures(value) == told


def test_units():
    values = (22_720_000, 412, 99_999, 120_000, 3.2e9)
    assert [large(value) for value in values] == ["22.72 M", "412", "99,999", "0.12 M", "3.20 G"]
    ratios = (0.1771, 1.0, 2.345, 41.2, 0.0123)
    assert [times(value) for value in ratios] == ["0.18x", "1.0x", "2.3x", "41.2x", "0.012x"]
