"""torch.compile as an option: the same training, with taps on what is compiled, and nothing left on the models."""

import pytest
import torch

import hookbrew as hb
from hookbrew.config import structure_train
from hookbrew.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, when it begins to compile


def trained(tagger, batches, pack, **options):
    """The student's weights after some steps, with both models as `fit` left them."""
    torch.manual_seed(0)
    teacher, student = tagger(12), tagger(8, dropout=0.0)
    losses = [hb.loss("kd_ce"), hb.loss("hidden_mse", student="blocks[*]", teacher="blocks[*]", projection="linear")]
    run = hb.Distillation(teacher, student, losses, catalogue=pack)
    data = batches([3, 2], [3, 1], [4, 2])
    run.fit(data, epochs=2, optimizer=torch.optim.SGD(student.parameters(), 0.1), evaluate=data, **options)
    return torch.cat([p.detach().flatten() for p in student.parameters()]), (teacher, student)


class Compiled:
    """Which models run compiled in the middle of a training."""

    def __init__(self):
        self.seen = []

    def batch_ready(self, state):
        self.seen.append([model._compiled_call_impl is not None for model in (state.student, state.teacher)])


def test_a_compiled_student_does_not_stop(tagger, batches, pack):
    with pytest.raises(ConfigError) as caught:
        trained(tagger, batches, pack, compile="both", chunked=True)
    what = "a compiled student does not stop before its head; leave one out, this or 'compile'"
    assert str(caught.value) == f"fit: chunked: {what}"
    structure_train({"steps": 1, "compile": "teacher", "chunked": True})


@pytest.mark.slow
def test_the_same_training(tagger, batches, pack):
    plain, _ = trained(tagger, batches, pack)
    watch = Compiled()
    compiled, models = trained(tagger, batches, pack, compile="both", callbacks=[watch])
    assert watch.seen == [[True, True]] * 6
    torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=0)
    assert [model._compiled_call_impl for model in models] == [None, None]


@pytest.mark.parametrize(("which", "seen"), [("student", [True, False]), ("teacher", [False, True])])
def test_one_side(tagger, batches, pack, which, seen):
    """Before anything is compiled: torch does that in the first forward."""

    class Ends(Exception):
        pass

    class First(Compiled):
        def batch_ready(self, state):
            super().batch_ready(state)
            raise Ends

    watch = First()
    with pytest.raises(Ends):
        trained(tagger, batches, pack, compile=which, callbacks=[watch])
    assert watch.seen == [seen]


def test_what_is_compiled_by_the_user_stays_so(tagger, batches, pack):
    from hookbrew.loop.device import compiled

    model = tagger(8)
    model.compile(backend="eager")
    before = model._compiled_call_impl
    with compiled([model, model]):
        assert model._compiled_call_impl is before
    assert model._compiled_call_impl is before


def test_another_word():
    with pytest.raises(ConfigError, match="compile"):
        structure_train({"steps": 1, "compile": "all"})
