"""What goes wrong in TextBrewer and is right here: the rows of docs/textbrewer.md that no other test shows."""

import math

import pytest
import torch

import hookbrew as hb
from hookbrew.loop import Given, Mixture

NAMES = {
    "losses": "kd_ce kd_mse hidden_mse cos pkd fsp gram nst mmd attention_mse attention_mse_sum attention_ce "
    "attention_ce_mean",
    "projections": "linear relu tanh",
    "schedules": "linear_decay linear_growth",
    "augments": "masking deleting n_gram_sampling short_disorder long_disorder",
}


class Watch:
    """The modes, the lengths of all trained gradients together, the losses and the weights in force, by step."""

    def __init__(self, optimizer):
        self._optimizer = optimizer
        self._modes, self._norms, self._losses, self._weights = set(), [], [], []

    def forward_end(self, state):
        self._modes.add((state.teacher.training, state.student.training))

    def loss_end(self, state):
        self._losses.append(state.loss.item())

    def grads_ready(self, state):
        trained = [p.grad for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._norms.append(torch.nn.utils.get_total_norm(trained).item())

    def log(self, state):
        self._weights.append(state.record.get("weight/kd_ce"))


@pytest.fixture
def watched(pack):
    """watched(teacher, student, losses, data, ...): a fit, and who watched it."""

    def fit(teacher, student, losses, data, **train):
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        watch = Watch(optimizer)
        run = hb.Distillation(teacher, student, losses, catalogue=pack)
        run.fit(data, optimizer=optimizer, callbacks=[watch], log_every=1, **{"epochs": 1, **train})
        return watch

    return fit


@pytest.mark.parametrize("kind", NAMES)
def test_every_name_of_textbrewer_is_here(pack, kind):
    assert set(NAMES[kind].split()) <= set(pack.names(kind))


def test_the_teacher_is_in_evaluation_mode_and_the_student_in_training(watched, tagger, batches):
    teacher, student = tagger(dropout=0.5), tagger(dropout=0.5)
    student.eval()
    watch = watched(teacher, student, [hb.loss("kd_ce")], batches((3, 2)))
    assert watch._modes == {(False, True)}
    assert (teacher.training, student.training) == (True, False)


def test_projections_are_clipped_with_the_student(watched, tagger, batches):
    loss = hb.loss("hidden_mse", student="head", teacher="head", projection="linear")
    free = watched(tagger(), tagger(), [loss], batches((3, 2), (2, 2)))
    clipped = watched(tagger(), tagger(), [loss], batches((3, 2), (2, 2)), clip_grad_norm=1e-3)
    assert min(free._norms) > 1e-3
    assert all(math.isclose(norm, 1e-3, rel_tol=1e-3) for norm in clipped._norms)


def test_a_schedule_multiplies_its_weight_and_leaves_it_as_it_was(pack, tagger, batches):
    """A second training begins where the first one did, not where it ended."""
    teacher, student, seen = tagger(), tagger(), []
    losses = [hb.loss("kd_ce", weight={"type": "linear_decay", "base": 0.3})]
    run = hb.Distillation(teacher, student, losses, catalogue=pack)
    for _ in range(2):
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        watch = Watch(optimizer)
        run.fit(batches((3, 2), (2, 2), (4, 1)), epochs=1, optimizer=optimizer, callbacks=[watch], log_every=1)
        seen.append(watch._weights)
    assert seen == [pytest.approx([0.3, 0.2, 0.1])] * 2


def test_a_mask_of_the_teacher_counts_too(watched, tagger, batches):
    """Of tokens that one of the two does not see nothing is compared, whichever of them it is."""
    (batch,) = batches((4, 4))
    ids, ones = batch["input_ids"], batch["attention_mask"]
    short, both = ones.clone(), ones.clone()
    short[0, 3] = both[0, 3] = 0
    losses = {}
    for name, (theirs, mine) in {"teacher": (short, ones), "student": (ones, short), "both": (both, both)}.items():
        parts = {
            "teacher": {"input_ids": ids, "attention_mask": theirs},
            "student": {"input_ids": ids, "attention_mask": mine},
        }
        torch.manual_seed(1)
        pair = tagger(pooled=False), tagger(pooled=False)
        losses[name] = watched(*pair, [hb.loss("kd_ce")], [parts])._losses
    assert losses["teacher"] == losses["student"] == losses["both"]
    torch.manual_seed(1)
    whole = watched(tagger(pooled=False), tagger(pooled=False), [hb.loss("kd_ce")], [batch])._losses
    assert abs(whole[0] - losses["both"][0]) > 1e-4


def test_more_batches_a_step_than_an_epoch_has(watched, tagger, batches):
    student = tagger()
    before = student.head.weight.detach().clone()
    watch = watched(tagger(), student, [hb.loss("kd_ce")], batches((3, 2), (2, 2)), accumulate=9, epochs=2)
    assert len(watch._norms) == 2
    assert not torch.equal(student.head.weight, before)


def test_tasks_are_drawn_by_their_samples(batches):
    """Not by their batches: two sets of 20 samples are drawn alike, in batches of 4 as in one of 20."""
    feeds = {"small": Given(batches(*[(2, 2, 2, 2)] * 5)), "large": Given(batches((2,) * 20))}
    assert Mixture(feeds).shares == {"small": 0.5, "large": 0.5}


def test_a_run_may_be_shorter_than_the_way_to_its_first_checkpoint(pack, tagger, batches, tmp_path):
    run = hb.Distillation(tagger(), tagger(), [hb.loss("kd_ce")], catalogue=pack)
    copies = hb.callback("checkpoint", every=10)
    assert run.fit(batches((3, 2)), steps=2, callbacks=[copies], output=tmp_path / "run").step == 2
