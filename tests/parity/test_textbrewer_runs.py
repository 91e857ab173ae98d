"""Where a run does something else than TextBrewer's on purpose: the rows of docs/textbrewer.md, with both."""

import numpy as np
import pytest
import torch
from textbrewer.distiller_utils import CustomMatch

import hookbrew as hb
from hookbrew.errors import ConfigError
from hookbrew.loop import Given, Mixture


class Heard:
    """What happened: the losses of all steps, the weights in force, the steps, and who was in training mode."""

    def __init__(self):
        self._rows, self._losses, self._modes = [], [], []

    def loss_end(self, state):
        self._losses.append(state.loss.item())
        self._modes.append((state.teacher.training, state.student.training))

    def log(self, state):
        self._rows.append(dict(state.record))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def plain(batch, logits):
    """An adaptor as in TextBrewer's notebooks: without a mask."""
    return {"logits": logits}


def whole(batch, logits):
    """An adaptor that gives its logits as a hidden state too."""
    return {"logits": logits, "hidden": [logits]}


def fitted(teacher, student, losses, loader, *, optimizer=None, **train):
    heard = Heard()
    distillation = hb.Distillation(teacher, student, losses, fields=("input_ids", "attention_mask"))
    distillation.fit(
        loader, optimizer=optimizer or sgd(student), callbacks=[heard], log_every=1, **{"epochs": 1, **train}
    )
    return heard


@pytest.fixture
def pair(tagger):
    """A new teacher and student with equal weights in each call."""

    def make(pooled=True, dropout=0.0):
        torch.manual_seed(5)
        return tagger(pooled=pooled, dropout=dropout), tagger(pooled=pooled, dropout=dropout)

    return make


@pytest.fixture
def loader(batches):
    """Tuples of ids and masks, by the lengths of the samples of each batch."""
    return lambda *groups: [(batch["input_ids"], batch["attention_mask"]) for batch in batches(*groups)]


def test_a_schedule_multiplies_the_weight(brewed, pair, loader):
    data = loader((3, 2), (4, 4), (2, 3), (3, 3))
    distiller, scalars = brewed(*pair(), plain, kd_loss_weight=0.3, kd_loss_weight_scheduler="linear_growth")
    with distiller:
        distiller.train(sgd(distiller.model_S), data, num_epochs=1)
    theirs = [a / b for a, b in zip(scalars["total_loss"], scalars["unweighted_kd_loss"], strict=True)]
    assert theirs == pytest.approx([0.3, 0.25, 0.5, 0.75])
    assert distiller.d_config.kd_loss_weight == 1.0
    losses = [hb.loss("kd_ce", t_squared=False, weight={"type": "linear_growth", "base": 0.3})]
    heard = fitted(*pair(), losses, data)
    assert [row["weight/kd_ce"] for row in heard._rows] == pytest.approx([0.0, 0.075, 0.15, 0.225])


def test_padding_is_found_by_itself(brewed, pair, loader):
    """An adaptor that forgets the mask, or misspells its key, counts padding; here the batch says what it is."""

    def misspelt(batch, logits):
        return {"logits": logits, "logit_mask": batch[1]}

    (short,), wide = loader((3, 1)), [torch.nn.functional.pad(tensor, (0, 4)) for tensor in loader((3, 1))[0]]
    theirs, ours = [], []
    for adaptor in (plain, misspelt, lambda batch, logits: {"logits": logits, "logits_mask": batch[1]}):
        for batch in (short, tuple(wide)):
            distiller, scalars = brewed(*pair(pooled=False), adaptor)
            with distiller:
                distiller.train(sgd(distiller.model_S), [batch], num_epochs=1)
            theirs += scalars["total_loss"]
    for batch in (short, tuple(wide)):
        ours += fitted(*pair(pooled=False), [hb.loss("kd_ce", t_squared=False)], [batch])._losses
    assert theirs[0] == theirs[2]
    assert theirs[1] == theirs[3]
    assert abs(theirs[0] - theirs[1]) > 1e-3
    assert [*theirs[4:], *ours] == pytest.approx([ours[0]] * 4, rel=1e-6)


def test_the_masks_of_both_sides_count(brewed, pair, loader):
    """Both take what is for the teacher alone; TextBrewer compares with the padding of the teacher."""

    def seen(batch, logits):
        return {"hidden": [logits], "inputs_mask": batch["attention_mask"]}

    ((ids, ones),) = loader((4, 4))
    short, match = ones.clone(), {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "hidden_mse", "weight": 1}
    short[0, 3] = 0
    theirs, ours = [], []
    for masks in ((ones, ones), (short, ones), (short, short)):
        sides = zip(("teacher", "student"), masks, strict=True)
        batch = {side: {"input_ids": ids, "attention_mask": mask} for side, mask in sides}
        distiller, scalars = brewed(*pair(pooled=False), seen, intermediate_matches=[match])
        with distiller:
            distiller.train(sgd(distiller.model_S), [batch], num_epochs=1)
        theirs += scalars["total_loss"]
        loss = hb.loss("hidden_mse", student="head", teacher="head")
        ours += fitted(*pair(pooled=False), [loss], [batch])._losses
    assert theirs == pytest.approx([ours[0], ours[0], ours[1]], rel=1e-6)
    assert ours[1] == ours[2]
    assert abs(ours[0] - ours[1]) > 1e-3


def test_micro_batches_are_one_batch(brewed, pair, loader):
    """Two micro-batches with 1 and 7 tokens have the gradient of the 8 tokens, not the mean of two gradients."""

    def masked(batch, logits):
        return {"logits": logits, "logits_mask": batch[1]}

    (whole,) = loader((1, 7))
    parts = [tuple(tensor[i : i + 1] for tensor in whole) for i in (0, 1)]
    moved = {}
    for name, data in {"parts": parts, "whole": [whole]}.items():
        distiller, _ = brewed(*pair(pooled=False), masked, accumulate=len(data))
        with distiller:
            distiller.train(sgd(distiller.model_S), data, num_epochs=1)
        teacher, student = pair(pooled=False)
        fitted(teacher, student, [hb.loss("kd_ce", t_squared=False)], data, accumulate=len(data))
        moved[name] = distiller.model_S.head.weight.detach(), student.head.weight.detach()
    apart = [(a - b).abs().max().item() for a, b in zip(moved["parts"], moved["whole"], strict=True)]
    step = (moved["whole"][1] - pair(pooled=False)[1].head.weight).abs().max().item()
    assert apart[0] > 0.1 * step
    assert apart[1] < 1e-5 * step
    torch.testing.assert_close(*moved["whole"])


def test_the_last_batches_of_an_epoch_are_trained_on(brewed, pair, loader):
    data = loader(*[(3, 2)] * 5)
    steps = {}
    for accumulate in (2, 9):
        distiller, _ = brewed(*pair(), plain, accumulate=accumulate)
        optimizer, made = sgd(distiller.model_S), []
        optimizer.register_step_post_hook(lambda *_, made=made: made.append(1))
        with distiller:
            distiller.train(optimizer, data, num_epochs=2)
        heard = fitted(*pair(), [hb.loss("kd_ce")], data, accumulate=accumulate, epochs=2)
        steps[accumulate] = len(made), len(heard._rows)
    assert steps == {2: (4, 6), 9: (0, 2)}


def test_the_teacher_is_in_evaluation_mode(brewed, pair, loader):
    data, seen = loader((3, 2)), []
    distiller, _ = brewed(*pair(dropout=0.5), plain)
    distiller.model_T.register_forward_hook(lambda module, *_: seen.append(module.training))
    distiller.train(sgd(distiller.model_S), data, num_epochs=1)
    assert seen == [True]
    assert fitted(*pair(dropout=0.5), [hb.loss("kd_ce")], data)._modes == [(False, True)]


def test_projections_have_the_options_of_the_student(brewed, tagger, loader):
    """lr and weight decay: TextBrewer's come from the optimizer's constructor, not from the student's group."""
    match = {
        "layer_T": 0,
        "layer_S": 0,
        "feature": "hidden",
        "loss": "hidden_mse",
        "weight": 1,
        "proj": ["linear", 3, 3],
    }
    data, teacher, student = loader((3, 2)), tagger(), tagger()

    def optimizer():
        return torch.optim.AdamW([{"params": list(student.parameters()), "lr": 1e-3, "weight_decay": 0.3}], lr=5e-4)

    distiller, _ = brewed(teacher, student, whole, intermediate_matches=[match])
    theirs, ours = optimizer(), optimizer()
    with distiller:
        distiller.train(theirs, data, num_epochs=1)
    assert [(group["lr"], group["weight_decay"]) for group in theirs.param_groups] == [(1e-3, 0.3), (5e-4, 0.01)]
    losses = [hb.loss("hidden_mse", student="head", teacher="head", projection="linear")]
    fitted(teacher, student, losses, data, optimizer=ours)
    assert [(group["lr"], group["weight_decay"]) for group in ours.param_groups] == [(1e-3, 0.3)]
    assert len(ours.param_groups[0]["params"]) == len(list(student.parameters())) + 2


def test_a_second_training_with_one_optimizer(brewed, tagger, loader):
    data, teacher, student = loader((3, 2)), tagger(), tagger()
    match = {
        "layer_T": 0,
        "layer_S": 0,
        "feature": "hidden",
        "loss": "hidden_mse",
        "weight": 1,
        "proj": ["linear", 3, 3],
    }
    distiller, _ = brewed(teacher, student, whole, intermediate_matches=[match])
    optimizer = sgd(student)
    with distiller:
        distiller.train(optimizer, data, num_epochs=1)
    with pytest.raises(ValueError, match="more than one parameter group"), distiller:
        distiller.train(optimizer, data, num_epochs=1)
    losses, optimizer, heard = (
        [hb.loss("hidden_mse", student="head", teacher="head", projection="linear")],
        sgd(student),
        Heard(),
    )
    distillation = hb.Distillation(teacher, student, losses, fields=("input_ids", "attention_mask"))
    for _ in range(2):
        distillation.fit(data, epochs=1, optimizer=optimizer, callbacks=[heard])
    assert len(heard._losses) == 2


def test_what_cannot_work_is_said_before_training(brewed, pair, loader):
    data, match = loader((3, 2)), {"feature": "hidden", "weight": 1}
    for wrong, error in [
        ({"layer_T": 0, "layer_S": 0, "loss": "hidden_mes"}, KeyError),
        ({"layer_T": 0, "layer_S": 7, "loss": "hidden_mse"}, IndexError),
    ]:
        distiller, _ = brewed(*pair(), whole, intermediate_matches=[match | wrong])
        with pytest.raises(error), distiller:
            distiller.train(sgd(distiller.model_S), data, num_epochs=1)
    with pytest.raises(ConfigError, match="did you mean 'hidden_mse'"):
        hb.Distillation(*pair(), [hb.loss("hidden_mes", student="head", teacher="head")])
    with pytest.raises(ConfigError, match=r"losses\[0\].student"):
        hb.Distillation(*pair(), [hb.loss("hidden_mse", student="blocks[7]", teacher="blocks[1]")])


def test_any_module_can_be_matched(brewed, pair, loader):
    """TextBrewer's matches by module end in a KeyError at the first step."""
    teacher, student = pair()
    match = CustomMatch(teacher.blocks[0], student.blocks[0], 1.0, torch.nn.functional.mse_loss)
    distiller, _ = brewed(teacher, student, plain, [match])
    with pytest.raises(KeyError, match="match_weghts"), distiller:
        distiller.train(sgd(student), loader((3, 2)), num_epochs=1)
    heard = fitted(*pair(), [hb.loss("hidden_mse", student="blocks[0]", teacher="blocks[0]")], loader((3, 2)))
    assert len(heard._losses) == 1


def test_several_teachers_are_the_mean_of_their_logits(brewed, tagger, loader):
    """The same losses and the same student after four steps, as MultiTeacherDistiller has them."""
    data, losses, trained = loader((3, 2), (4, 4), (2, 3), (3, 3)), {}, {}
    for side in ("theirs", "ours"):
        torch.manual_seed(6)
        first, second, student = tagger(), tagger(), tagger()
        if side == "ours":
            loss = hb.loss("kd_ce", t_squared=False, temperature=4)
            losses[side] = fitted({"first": first, "second": second}, student, [loss], data)._losses
        else:
            distiller, scalars = brewed([first, second], student, plain, kind="MultiTeacher", temperature=4)
            with distiller:
                distiller.train(sgd(student), data, num_epochs=1)
            losses[side] = scalars["total_loss"]
        trained[side] = torch.cat([p.detach().flatten() for p in student.parameters()])
    assert losses["ours"] == pytest.approx(losses["theirs"], abs=1e-6)
    assert (trained["ours"] - trained["theirs"]).abs().max() <= 1e-6


def test_tasks_are_drawn_by_their_samples(brewed, tagger, loader):
    """Two sets of 20 samples, in batches of 4 and of 20: TextBrewer draws by batches, 5 to 1."""
    data = {"small": loader(*[(2, 2, 2, 2)] * 5), "large": loader((2,) * 20)}
    teachers, student, seen = {name: tagger() for name in data}, tagger(), []
    for name, teacher in teachers.items():
        teacher.register_forward_hook(lambda *_, name=name: seen.append(name))
    distiller, _ = brewed(teachers, student, dict.fromkeys(data, plain), kind="MultiTask")
    distiller.t_config.ckpt_steps = 60
    np.random.seed(0)
    with distiller:
        distiller.train(sgd(student), data, num_steps=60)
    assert seen.count("small") / 60 == pytest.approx(5 / 6, abs=0.15)
    feeds = {name: Given(loader, ("input_ids", "attention_mask")) for name, loader in data.items()}
    assert Mixture(feeds).shares == {"small": 0.5, "large": 0.5}
