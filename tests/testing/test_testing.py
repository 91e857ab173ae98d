"""The kits themselves: what they say, what they let pass, and that each of their properties can fail."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import attrs
import pytest
import torch
from torch import nn

from hookbrew.errors import ObjectiveError
from hookbrew.plugin import options
from hookbrew.testing import check_augment, check_callback, check_edit, check_loss, check_projection, check_schedule


@options
class Made:
    """A component that builds whatever it is told."""

    make: object = attrs.field()

    def build(self, *sizes):
        return self.make(*sizes)


def loss(function, **more):
    """Options of a loss with this function."""
    return SimpleNamespace(build=lambda: function, **more)


def squared(student, teacher):
    """A correct loss without a mask."""
    return (student.float() - teacher.detach().float()).square().mean()


def squared_as_is(student, teacher):
    """A correct loss without a mask, in the precision of its inputs."""
    widened = (x.float() if x.dtype == torch.bfloat16 else x for x in (student, teacher.detach()))
    return torch.nn.functional.mse_loss(*widened)


def test_a_message_names_the_class_and_every_property_that_fails():
    with pytest.raises(AssertionError) as caught:
        check_loss(Made(make=lambda: lambda student: student.sum() * 0))
    assert str(caught.value) == ("Made fails student_gradient: no gradient reaches the student (student (6, 5))")


def test_several_failures_are_told_together():
    found = check_loss.failures(Made(make=lambda: lambda student: student.sum()))
    assert list(found) == ["mean_over_batch", "micro_batches", "impossible_class"]
    assert found["mean_over_batch"].startswith("Made fails mean_over_batch: doubling the batch changes the loss: ")
    with pytest.raises(AssertionError) as caught:
        check_loss(Made(make=lambda: lambda student: student.sum()))
    assert str(caught.value).splitlines() == list(found.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (loss(lambda teacher: teacher), "it takes no 'student'; one of: index, labels, mask, student, teacher"),
        (loss(lambda student, masks: student), "it asks for 'masks', which nobody gives; did you mean 'mask'?"),
        (loss(squared, takes="hiden"), "takes is 'hiden'; did you mean 'hidden'?"),
        (SimpleNamespace(), "raised AttributeError: 'types.SimpleNamespace' object has no attribute 'build'"),
    ],
)
def test_what_is_no_loss(options, message):
    with pytest.raises(AssertionError) as caught:
        check_loss(options)
    assert str(caught.value) == f"SimpleNamespace is no loss: {message}"


def test_a_loss_may_refuse_a_shape_but_not_all():
    def of_rank(rank, student, teacher):
        if student.dim() != rank:
            raise ObjectiveError(f"expected {rank} dimensions")
        return squared_as_is(student, teacher)

    check_loss(loss(partial(of_rank, 2), takes="hidden"))
    with pytest.raises(AssertionError) as caught:
        check_loss(loss(partial(of_rank, 7), takes="hidden"))
    assert str(caught.value) == (
        "SimpleNamespace is no loss: it refuses every shape; student (6, 5): expected 7 dimensions; "
        "student (3, 4, 5): expected 7 dimensions"
    )


def test_what_a_loss_does_not_take_is_not_asked():
    names = {check.name for check in check_loss.checks(loss(squared, takes="hidden"))}
    assert not names & {"full_mask", "masked_out", "temperature_scale", "impossible_class", "tokens_as_samples"}
    assert {"teacher_detached", "zero_at_agreement"} <= names
    alone = {check.name for check in check_loss.checks(loss(lambda student, labels: student.mean()))}
    assert not alone & {"teacher_detached", "zero_at_agreement", "flat_at_agreement"}


def test_a_loss_that_learns():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, student, teacher):
            widened = (x.float() if x.dtype == torch.bfloat16 else x for x in (student, teacher.detach()))
            return self.scale * torch.nn.functional.mse_loss(*widened)

    check_loss(SimpleNamespace(build=Learned, takes="hidden"))


def test_float64_must_stay_float64():
    assert list(check_loss.failures(loss(squared, takes="hidden"))) == ["gradcheck"]


def test_exempt_by_the_call_or_by_the_class():
    @options
    class Sum:
        """Wrong, and says so."""

        exempt: ClassVar[dict[str, str]] = {"mean_over_batch": "a sum on purpose"}

        def build(self):
            return lambda student: student.sum()

    check_loss(Sum(), exempt={"impossible_class": "a sum of logits", "micro_batches": "a sum, too"})
    assert list(check_loss.failures(Sum())) == ["micro_batches", "impossible_class"]


@pytest.mark.parametrize(
    ("exempt", "message"),
    [
        ({"gradchek": "why"}, "Made is exempt from 'gradchek', which is no property; did you mean 'gradcheck'?"),
        ({"gradcheck": " "}, "Made is exempt from 'gradcheck' without a reason"),
    ],
)
def test_an_exemption_needs_a_property_and_a_reason(exempt, message):
    with pytest.raises(AssertionError) as caught:
        check_loss(Made(make=lambda: squared_as_is), exempt=exempt)
    assert str(caught.value) == message


@check_loss.each(loss(squared, takes="hidden"), loss(squared_as_is, takes="hidden"), exempt={"gradcheck": "float32"})
def test_one_test_for_each_property(check):
    check()


def test_each_names_its_tests_and_skips_what_is_exempt():
    mark = check_schedule.each(Made(make=lambda: lambda progress: 1.0), exempt={"pure": "why not"})
    assert mark.args[0] == "check"
    assert [one.id for one in mark.args[1]] == ["Made-defined_at_both_ends", "Made-finite", "Made-pure"]
    assert [[m.kwargs["reason"] for m in one.marks] for one in mark.args[1]] == [[], [], ["why not"]]


def test_global_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    check_projection(Made(make=nn.Linear))
    assert torch.equal(before, torch.get_rng_state())


class Counter:
    """A schedule that remembers its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, progress):
        self.calls += 1
        return self.calls


SCHEDULES = [
    (lambda: lambda progress: torch.tensor(progress), "defined_at_both_ends", "progress 0.0 gives a Tensor, no number"),
    (lambda: lambda progress: [][0], "defined_at_both_ends", "raised IndexError: list index out of range"),
    (lambda: lambda progress: float("inf"), "finite", "progress 0 gives inf"),
    (Counter, "pure", "progress 0 gives 1, then 196; built anew 1"),
]


@pytest.mark.parametrize(("make", "name", "message"), SCHEDULES)
def test_schedules_with_a_mistake(make, name, message):
    assert check_schedule.failures(Made(make=make))[name] == f"Made fails {name}: {message}"


class Wrong(nn.Linear):
    """A projection with one mistake."""

    def __init__(self, student, teacher, mistake=None):
        super().__init__(student, teacher)
        self.mistake = mistake
        self.drift = torch.randn(())

    def forward(self, features):
        if self.mistake == "input_untouched":
            features.mul_(2)
        if self.mistake == "gradient_passes":
            features = features.detach()
        output = super().forward(features)
        if self.mistake == "keeps_dtype":
            return output.float()
        if self.mistake == "maps_last_dimension":
            return output.flatten(1)
        return output + self.drift if self.mistake == "state_restores" else output


@pytest.mark.parametrize(
    "mistake", ["input_untouched", "gradient_passes", "keeps_dtype", "maps_last_dimension", "state_restores"]
)
def test_projections_with_a_mistake(mistake):
    check_projection(Made(make=Wrong))
    assert mistake in check_projection.failures(Made(make=partial(Wrong, mistake=mistake)))


def test_a_projection_without_parameters_or_with_weights_of_its_own_seed():
    assert "is_module" in check_projection.failures(Made(make=lambda *sizes: nn.Identity()))

    def unseeded(student, teacher, generator=torch.Generator()):  # noqa: B008  # one generator for all calls
        layer = nn.Linear(student, teacher)
        nn.init.normal_(layer.weight, generator=generator)
        return layer

    assert list(check_projection.failures(Made(make=unseeded))) == ["seeded"]


ONE_LAYER = nn.Linear(8, 8)


def behind(surgery):
    """By hand, so that nobody can undo it."""
    surgery.model.layers[0].act = nn.ReLU()


def partly(surgery):
    """One edit by the surgery, and one by hand."""
    surgery.freeze("layers[1]")
    surgery.model.layers[0].act = nn.ReLU()


def single(surgery):
    """A later module of another dtype, put in by hand below what the surgery has made."""
    surgery.swap("body", nn.Sequential(nn.Linear(8, 8)))
    surgery.model.body.append(nn.Linear(8, 8))


def unseeded_linear(path, old, generator=torch.Generator()):  # noqa: B008  # one generator for all calls
    layer = nn.Linear(8, 8)
    nn.init.normal_(layer.weight, generator=generator)
    return layer


EDITS = [
    (lambda surgery: None, "changes_something"),
    (behind, "changes_something"),
    (partly, "undone"),
    (lambda surgery: surgery.swap("body", nn.Linear(8, 5)), "still_runs"),
    (lambda surgery: surgery.swap("body[0]", unseeded_linear), "seeded"),
    (lambda surgery: surgery.swap("body[0]", ONE_LAYER), "shares_nothing"),
    (single, "keeps_places"),
]


@pytest.mark.parametrize(("edit", "name"), EDITS)
def test_edits_with_a_mistake(edit, name):
    assert check_edit.failures(Made(make=lambda: edit))[name].startswith(f"Made fails {name}: ")


def test_an_edit_that_is_right():
    check_edit(Made(make=lambda: lambda surgery: surgery.swap("body[0]", lambda path, old: nn.Linear(8, 8))))
    with pytest.raises(AssertionError, match=r"Made is no edit: build\(\) gives no function of a Surgery"):
        check_edit(Made(make=lambda: None))


def fill(batch, value):
    """Write into the first row, in place."""
    batch["input_ids"][0] = value
    return batch


AUGMENTS = [
    (lambda batch, generator: batch, "input_untouched"),
    (lambda batch, generator: dict(fill(batch, 7)), "input_untouched"),
    (lambda batch, generator: {**batch, "extra": batch["labels"]}, "shapes_and_dtypes"),
    (lambda batch, generator: {**batch, "input_ids": batch["input_ids"][:, 1:]}, "shapes_and_dtypes"),
    (lambda batch, generator: {**batch, "input_ids": batch["input_ids"].int()}, "shapes_and_dtypes"),
    (lambda batch, generator: {**batch, "input_ids": torch.randint_like(batch["input_ids"], 9)}, "seeded"),
    (
        lambda batch, generator: {**batch, "input_ids": torch.randint_like(batch["input_ids"], 9)},
        "global_random_untouched",
    ),
    (lambda batch, generator: {**batch, "labels": 1 - batch["labels"]}, "label_mass"),
]


@pytest.mark.parametrize(("augment", "name"), AUGMENTS)
def test_augmentations_with_a_mistake(augment, name):
    found = check_augment.failures(Made(make=lambda: augment))
    assert found[name].startswith(f"Made fails {name}: ")


def test_an_augmentation_of_another_batch():
    batch = {"pixels": torch.rand(4, 3), "labels": torch.eye(4)}

    def mix(batch, generator):
        order = torch.randperm(4, generator=generator)
        return {key: (tensor + tensor[order]) / 2 for key, tensor in batch.items()}

    check_augment(Made(make=lambda: mix), batch=batch)
    halved = Made(make=lambda: lambda batch, generator: {key: tensor / 2 for key, tensor in batch.items()})
    assert check_augment.failures(halved, batch=batch) == {
        "label_mass": "Made fails label_mass: the sums of the soft labels change"
    }


class Watch:
    """A callback with a state."""

    def __init__(self):
        self.seen = {"rows": [torch.zeros(2)]}

    def step_end(self, state):
        self.seen["rows"].append(state.step)

    def state_dict(self):
        return self.seen

    def load_state_dict(self, state):
        self.seen = state


class Misspelt:
    """Its event would never fire."""

    def step_ended(self, state):
        pass


class Greedy:
    """Asks for more than the state."""

    def step_end(self, state, loss):
        pass


class Half(Misspelt):
    """Saves what it cannot load."""

    step_ended = None

    def step_end(self, state):
        pass

    def state_dict(self):
        return {}


class Forgetful(Watch):
    """Loads nothing."""

    def state_dict(self):
        return {"id": id(self)}

    def load_state_dict(self, state):
        pass


@attrs.define
class Equal:
    """Two of them are one."""

    def step_end(self, state):
        pass


ONE = Watch()
CALLBACKS = [
    (lambda: ONE, "fresh_for_each_run", "build() gives the same object twice"),
    (Equal, "fresh_for_each_run", "two of them are equal, so one run cannot hold both; in attrs: eq=False"),
    (Misspelt, "methods_are_events", "'step_ended' is no event; did you mean 'step_end'?"),
    (object, "methods_are_events", "it has no event, so it would never be called"),
    (Greedy, "one_argument", "step_end(state, loss): expected step_end(state)"),
    (Half, "state_both_ways", "it has state_dict alone; state_dict and load_state_dict come together"),
]


@pytest.mark.parametrize(("make", "name", "message"), CALLBACKS)
def test_callbacks_with_a_mistake(make, name, message):
    assert check_callback.failures(Made(make=make))[name] == f"Made fails {name}: {message}"


def test_a_callback_with_a_state():
    check_callback(Made(make=Watch))
    assert list(check_callback.failures(Made(make=Forgetful))) == ["state_round_trip"]
