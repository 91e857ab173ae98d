"""Aliases in losses, a teacher that stops early, and tensors that are read once."""

import pytest
import torch

import hookbrew as hb
from hookbrew.config import structure_loss
from hookbrew.errors import ConfigError
from hookbrew.objective import Objective

HIDDEN = hb.loss("hidden_mse", student="hidden[1:]", teacher="hidden[1:]", projection="linear")


@pytest.fixture
def made(pack):
    def make(student, teacher, *tables):
        return Objective(student, teacher, [structure_loss(table.table, pack) for table in tables])

    return make


@pytest.fixture
def heads():
    """heads(model): a list that grows by one with each forward that comes as far as the model's head."""

    def count(model):
        seen = []
        model.head.register_forward_pre_hook(lambda *_: seen.append(1))
        return seen

    return count


def test_an_alias_is_what_it_stands_for(tagger, batches, made):
    student, teacher = tagger(8).double(), tagger(12).double()
    (batch,) = batches([4, 2, 3])
    path = hb.loss("hidden_mse", student="blocks[*]", teacher="blocks[*]", projection="linear")
    found = []
    for table in (HIDDEN, path):
        torch.manual_seed(0)
        objective = made(student, teacher, table)
        with objective.attached():
            objective.measure(batch)
            objective.forward(batch)
            found.append([mean.item() for mean in objective.means(batch).values()])
        assert [objective.described(term) for term in objective.terms] == [
            "student blocks.0 ~ teacher blocks.0",
            "student blocks.1 ~ teacher blocks.1",
        ]
    assert found[0] == found[1]


def test_all_aliases_that_stand_for_nothing(tagger, batches, made):
    tables = [
        hb.loss("hidden_mse", student="hidden[9]", teacher="hidden[1]"),
        hb.loss("hidden_mse", student="hidden[1]", teacher="attention[0]"),
    ]
    objective = made(tagger(8), tagger(8), *tables)
    with pytest.raises(ConfigError) as caught, objective.attached():
        objective.measure(*batches([3, 2]))
    assert str(caught.value) == (
        "losses[0].student: selector 'hidden[9]': index [9] out of range: there are hidden[0..2]\n"
        "losses[1].teacher: selector 'attention[0]': no attention was found in 'blocks.0'"
    )


def test_a_teacher_stops_after_the_last_layer_that_is_read(tagger, batches, made, heads):
    teacher = tagger(12)
    first, second = batches([3, 2], [4, 1])
    tables = [hb.loss("hidden_mse", student="blocks[0]", teacher="blocks[0]", projection="linear"), hb.loss("ce")]
    objective = made(tagger(8), teacher, *tables)
    whole = made(objective.student, teacher, *tables)
    reached = heads(teacher)
    with objective.attached():
        objective.measure(first)
        assert objective.stops == {"teacher": "blocks.0"}
        assert len(reached) == 1
        objective.forward(second)
        assert len(reached) == 1
        assert objective.outputs[1] is None
        means = objective.means(second)
    whole.terms = objective.terms
    with whole.attached():
        whole.measure(first, stop=False)
        whole.forward(second)
        assert len(reached) == 3
        assert whole.stops == {}
        assert whole.outputs[1] is not None
        assert {name: torch.equal(mean, means[name]) for name, mean in whole.means(second).items()} == {
            "hidden_mse": True,
            "ce": True,
        }


def test_a_teacher_whose_output_is_read_does_not_stop(tagger, batches, made, heads):
    teacher = tagger(12)
    (batch,) = batches([3, 2])
    objective = made(tagger(8), teacher, HIDDEN, hb.loss("kd_ce"))
    reached = heads(teacher)
    with objective.attached():
        objective.measure(batch)
        del reached[:]
        objective.forward(batch)
    assert len(reached) == 1
    assert objective.stops == {}


def test_a_student_never_stops(tagger, batches, made, heads):
    student = tagger(8)
    (batch,) = batches([3, 2])
    objective = made(student, tagger(8), HIDDEN)
    reached = heads(student)
    with objective.attached():
        objective.measure(batch)
        del reached[:]
        objective.forward(batch)
        objective.predict(batch)
    assert len(reached) == 2


def test_training_with_a_teacher_that_stops(tagger, batches):
    """The same weights, whether the teacher stops or not, and events that see no output of it."""
    found, seen = [], []

    class Look:
        def forward_end(self, state):
            seen.append(state.teacher_out is None)

    for stop in (True, False):
        torch.manual_seed(0)
        student, teacher = tagger(8), tagger(12)
        run = hb.Distillation(teacher, student, [HIDDEN])
        run.fit(batches([3, 2], [4, 1]), epochs=2, callbacks=[Look()], stop_teacher=stop)
        found.append(torch.cat([p.flatten() for p in student.parameters()]))
    assert torch.equal(*found)
    assert seen == [True] * 4 + [False] * 4


def test_a_second_fit_may_let_the_teacher_go_on(tagger, batches):
    seen = []

    class Look:
        def forward_end(self, state):
            seen.append(state.teacher_out is None)

    run = hb.Distillation(tagger(12), tagger(8), [HIDDEN])
    for stop in (True, False, True):
        run.fit(batches([3, 2]), epochs=1, callbacks=[Look()], stop_teacher=stop)
    assert seen == [True, False, True]


def test_a_list_is_read_once_for_all_its_terms(tagger, batches, made, monkeypatch):
    (batch,) = batches([3, 2])
    objective = made(tagger(8), tagger(12), HIDDEN)
    with objective.attached():
        objective.measure(batch)
        objective.forward(batch)
        taps = objective._view.taps["student"]
        reads = []
        monkeypatch.setattr(type(taps), "__getitem__", record(reads, type(taps).__getitem__))
        objective.means(batch)
        assert sorted(reads) == ["losses[0]", "losses[0]"]
        objective.forward(batch)
        objective.means(batch)
        assert len(reads) == 4


def record(calls, method):
    """The method, which notes its argument."""

    def noted(self, name):
        calls.append(name)
        return method(self, name)

    return noted
