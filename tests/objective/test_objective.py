"""The objective: what it measures, what it refuses, and that micro-batches do not change the gradient."""

import copy

import pytest
import torch
from torch import nn

import hookbrew as hb
from hookbrew.config import structure_loss
from hookbrew.errors import ConfigError, DataError, SelectorError
from hookbrew.objective import Names, Objective


@pytest.fixture
def made(pack):
    def make(student, teacher, *tables, **names):
        return Objective(student, teacher, [structure_loss(t.table, pack) for t in tables], Names(**names))

    return make


@pytest.fixture
def measured(made):
    def make(student, teacher, batch, *tables, **names):
        objective = made(student, teacher, *tables, **names)
        with objective.attached():
            objective.measure(batch)
        return objective

    return make


HIDDEN = hb.loss("hidden_mse", student="blocks[*]", teacher="blocks[*]", projection="linear")


def gradient(objective, batches):
    """The gradient of the loop's reduction, by hand: sums over everything that is valid in all batches."""
    objective.student.zero_grad()
    with objective.attached():
        counts = [objective.counts(b, len(b["labels"]), torch.device("cpu")) for b in batches]
        for batch, valid in zip(batches, counts, strict=True):
            objective.forward(batch)
            (objective.sums(batch, valid) / sum(counts)).sum().backward()
    return torch.cat([p.grad.flatten() for p in objective.student.parameters() if p.grad is not None])


@pytest.mark.parametrize("pooled", [True, False])
def test_micro_batches_have_the_gradient_of_one_batch(tagger, batches, measured, pooled):
    student, teacher = tagger(8, pooled=pooled).double(), tagger(12, pooled=pooled).double()
    (whole,) = batches([7, 1, 4, 2, 6, 3])
    parts = [{k: v[a:b] for k, v in whole.items()} for a, b in ((0, 1), (1, 3), (3, 6))]
    tables = [hb.loss("kd_ce"), HIDDEN, hb.loss("ce", labels="labels" if pooled else "tags")]
    objective = measured(student, teacher, whole, *tables)
    assert torch.allclose(gradient(objective, [whole]), gradient(objective, parts), rtol=0, atol=1e-12)


def test_padding_more_changes_nothing(tagger, batches, measured):
    student, teacher = tagger(8, pooled=False).double(), tagger(12, pooled=False).double()
    (batch,) = batches([4, 2, 3])
    objective = measured(student, teacher, batch, hb.loss("kd_ce"), HIDDEN)
    wider = {k: nn.functional.pad(v, (0, 5)) if v.dim() == 2 else v for k, v in batch.items()}
    assert torch.allclose(gradient(objective, [batch]), gradient(objective, [wider]), rtol=0, atol=1e-12)


def test_samples_without_a_label_count_for_no_hard_loss(tagger, batches, measured):
    student = tagger(8)
    (batch,) = batches([4, 2, 3, 5])
    objective = measured(student, None, batch, hb.loss("ce"))
    half = {**batch, "labels": batch["labels"].index_fill(0, torch.tensor([1, 2]), -100)}
    only = {k: v[[0, 3]] for k, v in batch.items()}
    assert objective.counts(half, 4, torch.device("cpu")).tolist() == [2.0]
    assert torch.allclose(gradient(objective, [half]), gradient(objective, [only]), atol=1e-7)


def test_sizes_of_projections_are_measured(tagger, batches, measured):
    objective = measured(tagger(8), tagger(12), *batches([3, 2]), HIDDEN)
    assert [term.name for term in objective.terms] == ["hidden_mse/0", "hidden_mse/1"]
    sizes = [[tuple(p.shape) for p in term.projection.parameters()] for term in objective.terms]
    assert sizes == [[(12, 8), (12,)]] * 2
    assert len(list(objective.extras.parameters())) == 4


def test_names_are_made_unique(tagger, batches, measured):
    tables = [hb.loss("kd_ce"), hb.loss("kd_ce", temperature=1), hb.loss("kd_ce", name="soft")]
    objective = measured(tagger(8), tagger(8), *batches([3, 2]), *tables)
    assert [term.name for term in objective.terms] == ["kd_ce", "kd_ce_2", "soft"]


def test_weights_follow_their_schedule(tagger, batches, measured):
    table = hb.loss("kd_ce", weight={"type": "linear_decay", "base": 0.5})
    objective = measured(tagger(8), tagger(8), *batches([3, 2]), table, hb.loss("ce", weight=2))
    assert objective.weights(0.0) == [0.5, 2.0]
    assert objective.weights(0.75) == [0.125, 2.0]


def test_measuring_leaves_everything_as_it_was(tagger, batches, made):
    student, teacher = tagger(8, dropout=0.5), tagger(12)
    before = copy.deepcopy(student.state_dict())
    objective = made(student, teacher, hb.loss("kd_ce"), HIDDEN)
    state = torch.random.get_rng_state()
    student.train()
    teacher.blocks[0].eval()
    with objective.attached():
        assert not teacher.training
        objective.measure(*batches([3, 2]))
        drawn = torch.random.get_rng_state()
    assert student.training
    assert [m.training for m in (teacher, *teacher.blocks)] == [True, False, True]
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for model in (student, teacher) for m in model.modules())
    # projections draw their weights from the caller's random state, the probe does not
    torch.random.set_rng_state(state)
    for term in objective.terms:
        if term.projection is not None:
            type(objective.sources[1].table.projection.options)().build(8, 12)
    assert torch.equal(torch.random.get_rng_state(), drawn)


def test_labels_never_go_into_a_model(batches, made):
    class Greedy(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(20, 3)

        def forward(self, input_ids, attention_mask=None, labels=None):
            assert labels is None
            return self.embed(input_ids).mean(1)

    objective = made(Greedy(), None, hb.loss("ce"))
    with objective.attached():
        objective.measure(*batches([3, 2]))
    assert objective.received("student") == ("input_ids", "attention_mask")


def message(call, kind=ConfigError):
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def test_every_wrong_selector_is_reported_at_once(tagger, made):
    tables = [
        hb.loss("hidden_mse", student="blok[0]", teacher="blocks[0]"),
        hb.loss("hidden_mse", student="blocks[0]", teacher="blocks[7]"),
    ]
    text = message(lambda: made(tagger(), tagger(), *tables))
    assert text.splitlines() == [
        "losses[0].student: selector 'blok[0]' matches no module of Tagger. Stopped at the model: "
        "no child 'blok'; did you mean 'blocks'?",
        "losses[1].teacher: selector 'blocks[7]': index [7] out of range: 'blocks' has 2 children (0..1)",
    ]


def test_widths_that_differ(tagger, batches, measured):
    table = hb.loss("hidden_mse", student="blocks[0]", teacher="blocks[0]")
    assert message(lambda: measured(tagger(8), tagger(12), *batches([3, 2]), table)) == (
        'losses[0]: student (2, 3, 8) and teacher (2, 3, 12) differ in width: add projection = "linear"'
    )


def test_classes_that_differ(tagger, batches, measured):
    assert message(lambda: measured(tagger(classes=3), tagger(classes=4), *batches([3, 2]), hb.loss("kd_ce"))) == (
        "losses[0]: student (2, 3) and teacher (2, 4) differ: they must have the same classes"
    )


def test_lists_that_differ_in_length(tagger, batches, measured):
    table = hb.loss("hidden_mse", student="blocks[*]", teacher="blocks[0:1]")
    assert message(lambda: measured(tagger(), tagger(), *batches([3, 2]), table)) == (
        "losses[0]: 2 student taps and 1 teacher taps; they are matched one to one"
    )


def test_a_list_against_a_tensor(tagger, batches, measured):
    table = hb.loss("hidden_mse", student="blocks[*]", teacher="blocks[0]")
    assert message(lambda: measured(tagger(), tagger(), *batches([3, 2]), table)) == (
        "losses[0]: one side is a list of 2 tensors and the other a single tensor; a selector that "
        "has * ? { , or : in its path gives a list: write both in the same way"
    )


def test_missing_labels(tagger, batches, measured):
    (batch,) = batches([3, 2])
    assert message(lambda: measured(tagger(), None, batch, hb.loss("ce", labels="lables"))) == (
        "losses[0]: loss 'ce' needs labels, and the batch has no key 'lables'; did you mean 'labels'?"
    )


def test_a_mask_that_does_not_fit(tagger, batches, measured):
    (batch,) = batches([3, 2])
    batch["attention_mask"] = torch.ones(2, 4)
    table = hb.loss("hidden_mse", student="blocks[0]", teacher="blocks[0]")
    student, teacher = tagger(pooled=False), tagger(pooled=False)
    assert message(lambda: measured(student, teacher, batch, table)) == (
        "losses[0]: the mask 'attention_mask' is (2, 4) and does not fit the student's (2, 3, 8); name "
        'the right key with mask = "...", or write mask = false if every position counts'
    )
    measured(student, teacher, batch, hb.loss("hidden_mse", student="blocks[0]", teacher="blocks[0]", mask=False))


def test_a_named_mask_must_be_there(tagger, batches, measured):
    table = hb.loss("hidden_mse", student="blocks[0]", teacher="blocks[0]", mask="atention_mask")
    assert message(lambda: measured(tagger(), tagger(), *batches([3, 2]), table)) == (
        "losses[0]: mask: the batch has no key 'atention_mask'; did you mean 'attention_mask'?"
    )


def test_no_teacher(tagger, made):
    assert message(lambda: made(tagger(), None, hb.loss("kd_ce"))) == (
        "losses[0]: loss 'kd_ce' compares with a teacher, and there is none: add a [teacher] table"
    )


def test_hidden_losses_need_selectors(tagger, made):
    assert message(lambda: made(tagger(), tagger(), hb.loss("hidden_mse", student="blocks[0]"))) == (
        "losses[0]: loss 'hidden_mse' compares hidden tensors: name them with teacher = \"...\""
        " (`hookbrew taps` lists what there is)"
    )


def test_keys_that_a_loss_would_not_read(tagger, made):
    tables = [hb.loss("ce", teacher="head"), hb.loss("ce", projection="linear"), hb.loss("kd_ce", labels="labels")]
    assert message(lambda: made(tagger(), tagger(), *tables)).splitlines() == [
        "losses[0]: teacher: loss 'ce' reads no teacher; leave this key out",
        "losses[1]: projection: loss 'ce' reads no teacher; leave this key out",
        "losses[2]: labels: loss 'kd_ce' reads no labels; leave this key out",
    ]


def test_a_frozen_student_is_refused(tagger, batches, measured):
    student = tagger().requires_grad_(False)
    assert message(lambda: measured(student, tagger(), *batches([3, 2]), hb.loss("kd_ce"))) == (
        "losses[0]: loss 'kd_ce' reaches no trained parameter: its student tensor has no gradient "
        "(is that part of the student frozen, or detached?)"
    )


def test_a_loss_that_is_nan_at_once(tagger, batches, measured):
    student = tagger()
    with torch.no_grad():
        student.head.bias[0] = float("nan")
    assert message(lambda: measured(student, tagger(), *batches([3, 2]), hb.loss("kd_mse"))) == (
        "losses[0]: loss 'kd_mse' is nan on the first batch"
    )


def test_a_batch_that_fits_no_parameter(tagger, measured):
    batch = {"inputs": torch.ones(2, 3, dtype=torch.long), "labels": torch.zeros(2, dtype=torch.long)}
    assert message(lambda: measured(tagger(), None, batch, hb.loss("ce")), DataError) == (
        "Tagger needs 'input_ids', and the batch has inputs, labels; did you mean 'inputs'?"
        " (name the parts of a batch with data.fields, or rename them in the dataset)"
    )


def test_a_projection_alone_is_not_trained(tagger, batches, measured):
    student = tagger()
    student.embed.requires_grad_(False)
    student.blocks[0].requires_grad_(False)
    table = hb.loss("hidden_mse", student="blocks[0]", teacher="blocks[0]", projection="linear")
    assert message(lambda: measured(student, tagger(12), *batches([3, 2]), table)) == (
        "losses[0]: loss 'hidden_mse' reaches no trained parameter: its student tensor has no gradient "
        "(is that part of the student frozen, or detached?)"
    )


def test_a_mask_of_samples_counts_when_it_is_named(tagger, batches, measured):
    (batch,) = batches([3, 2, 4])
    batch["kept"] = torch.tensor([1, 0, 0])
    objective = measured(tagger(), tagger(), batch, hb.loss("kd_ce", mask="kept"))
    assert objective.counts(batch, 3, torch.device("cpu")).tolist() == [1.0]
    only = {k: v[:1] for k, v in batch.items()}
    assert torch.allclose(gradient(objective, [batch]), gradient(objective, [only]), atol=1e-7)


def test_a_named_mask_that_does_not_fit_pooled_logits(tagger, batches, measured):
    assert message(lambda: measured(tagger(), tagger(), *batches([3, 2]), hb.loss("kd_ce", mask="attention_mask"))) == (
        "losses[0]: the mask 'attention_mask' is (2, 3) and does not fit the student's (2, 3); name "
        'the right key with mask = "...", or write mask = false if every position counts'
    )


def test_labels_of_samples_for_a_loss_on_tokens(tagger, batches, measured):
    student = tagger(pooled=False)
    assert message(lambda: measured(student, None, *batches([3, 2]), hb.loss("ce"))) == (
        "losses[0]: labels are (2,); expected (2, 3), the student's shape (2, 3, 3) without its classes"
    )


def test_labels_that_are_no_tensor(tagger, batches, measured):
    (batch,) = batches([3, 2])
    assert message(lambda: measured(tagger(), None, batch | {"labels": ["a", "b"]}, hb.loss("ce"))) == (
        "losses[0]: loss 'ce' needs labels, and 'labels' is a list; expected a tensor"
    )


def test_a_mask_that_is_gone_in_a_later_batch(tagger, batches, measured):
    (batch,) = batches([3, 2])
    objective = measured(tagger(), tagger(12), batch, HIDDEN)
    bare = {k: v for k, v in batch.items() if k != "attention_mask"}
    assert message(lambda: objective.counts(bare, 2, torch.device("cpu")), DataError) == (
        "loss 'hidden_mse' obeys 'attention_mask', which the first batch had and this one lacks"
    )


def test_a_mask_that_comes_in_a_later_batch(tagger, batches, measured):
    (batch,) = batches([3, 2])
    objective = measured(tagger(), None, {k: v for k, v in batch.items() if k != "attention_mask"}, hb.loss("ce"))
    with objective.attached():
        assert message(lambda: objective.forward(batch), DataError) == (
            "the student takes 'attention_mask', which this batch has and the first one lacked"
        )


def test_a_model_that_teaches_itself_teaches_in_evaluation_mode(tagger, batches, measured):
    student = tagger(dropout=0.5)
    (batch,) = batches([3, 2])
    objective = measured(student, student, batch, hb.loss("kd_ce"))
    with objective.attached():
        student.train()
        objective.forward(batch)
        learned, taught = objective.outputs
        assert student.dropout.training
    student.eval()
    assert torch.equal(taught, student(batch["input_ids"], batch["attention_mask"]))
    assert not torch.equal(learned, taught)


def test_nothing_of_a_batch_is_kept(tagger, batches, measured):
    objective = measured(tagger(), tagger(12), *batches([3, 2]), HIDDEN)
    assert objective.outputs == (None, None)
    with pytest.raises(SelectorError, match="nothing to read"):
        objective.means({})


def test_no_losses(tagger, made):
    assert message(lambda: made(tagger(), tagger())) == "losses: there is none: nothing would be trained"


def test_a_number_never_makes_two_names_equal(tagger, batches, measured):
    tables = [hb.loss("ce"), hb.loss("ce"), hb.loss("ce", name="ce_2")]
    objective = measured(tagger(), None, *batches([3, 2]), *tables)
    assert len({term.name for term in objective.terms}) == 3


def test_labels_that_a_loss_only_looks_at_take_nothing_out(tagger, batches, measured):
    """With probability_shift a row without a label is compared as the teacher gave it."""
    (batch,) = batches([4, 2, 3, 5])
    half = {**batch, "labels": batch["labels"].index_fill(0, torch.tensor([1, 2]), -100)}
    objective = measured(tagger(8), tagger(8), half, hb.loss("kl", probability_shift=True), hb.loss("ce"))
    assert objective.counts(half, 4, torch.device("cpu")).tolist() == [4.0, 2.0]
