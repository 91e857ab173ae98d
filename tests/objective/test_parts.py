"""Batches with parts for the student and for teachers: two tokenizers, masks of either side, and who gets what."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hookbrew as hb
from hookbrew.errors import ConfigError, DataError
from hookbrew.loop import Given, Loader, Pad
from hookbrew.objective import parted


def message(call, kind=ConfigError):
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def nested(batches, student, *teachers, names=()):
    """A batch whose sides have tokens of their own: lists of lengths, then labels for all."""
    made = [batches(lengths, seed=i)[0] for i, lengths in enumerate((student, *teachers))]
    sides = [{k: v for k, v in one.items() if k in ("input_ids", "attention_mask")} for one in made]
    theirs = dict(zip(names, sides[1:], strict=True)) if names else sides[1]
    return {"student": sides[0], "teacher": theirs, "labels": made[0]["labels"]}


def first(batch):
    return Given([batch]).first()[0]


def test_two_tokenizers(tagger, batches, objective, step):
    """Each model sees its own tokens, whatever their number; so they do one after the other, by hand."""
    batch = nested(batches, [4, 2, 3], [6, 1, 5])
    student, teacher = tagger(8), tagger(12)
    made = objective(student, teacher, [hb.loss("kl", temperature=2), hb.loss("ce")], first(batch))
    means, _ = step(made, [first(batch)], 3)
    logits, target = student(**batch["student"]), teacher(**batch["teacher"])
    soft = (target / 2).softmax(-1).double()
    kl = (soft * (soft.log() - (logits / 2).log_softmax(-1).double())).sum(-1).mean() * 4
    hard = nn.functional.cross_entropy(logits, batch["labels"])
    assert means.tolist() == pytest.approx([kl.item(), hard.item()], abs=1e-6)


def test_teachers_with_tokens_of_their_own(tagger, batches, objective, step):
    batch = nested(batches, [4, 2], [6, 1], [3, 3], names=["big", "wide"])
    student, big, wide = tagger(8), tagger(12), tagger(16)
    made = objective(student, {"big": big, "wide": wide}, [hb.loss("kd_mse")], first(batch))
    means, _ = step(made, [first(batch)], 2)
    target = (big(**batch["teacher"]["big"]) + wide(**batch["teacher"]["wide"])) / 2
    assert means.item() == pytest.approx((student(**batch["student"]) - target).square().mean().item(), abs=1e-6)
    assert made.received("wide") == ("input_ids", "attention_mask")


def test_samples_with_parts_are_padded(batches):
    """One fill value serves the key on all sides; a side's own goes first."""
    samples = [
        {"student": {"input_ids": [1] * n}, "teacher": {"big": {"input_ids": [2] * m}}, "labels": 0}
        for n, m in ((2, 3), (1, 4))
    ]
    for workers in (0, 1):
        pad = Pad({"input_ids": 0, "teacher.big.input_ids": 9})
        loader = Loader(samples, batch_size=2, seed=None, collate=pad, workers=workers)
        (batch,) = list(loader.epoch(1))
        loader.close()
        assert {k: v.tolist() for k, v in batch.items()} == {
            "student.input_ids": [[1, 1], [1, 0]],
            "teacher.big.input_ids": [[2, 2, 2, 9], [2, 2, 2, 2]],
            "labels": [0, 0],
        }


def test_no_fill_value_for_a_part():
    samples = [{"student": {"input_ids": [1] * n}} for n in (2, 1)]
    assert message(lambda: Pad({})(samples), DataError) == (
        "samples differ in length in 'student.input_ids' (1, 2); say what fills the short ones up: "
        "pad = { input_ids = 0 }"
    )


def test_the_same_batch_by_a_loader_and_by_hand(batches):
    """A Given of nested batches and a Loader of nested samples name everything alike."""
    batch = nested(batches, [3, 3], [2, 2])
    samples = [
        {"student": {k: v[i] for k, v in batch["student"].items()}}
        | {"teacher": {k: v[i] for k, v in batch["teacher"].items()}, "labels": batch["labels"][i]}
        for i in range(2)
    ]
    (loaded,) = Loader(samples, batch_size=2, seed=None, collate=Pad({})).first()
    given_ = first(batch)
    assert loaded.keys() == given_.keys()
    assert all(torch.equal(loaded[key], given_[key]) for key in given_)


def test_other_tables_stay_as_they_are():
    assert first({"x": torch.ones(2), "targets": {"boxes": 1}})["targets"] == {"boxes": 1}


keys = st.sampled_from(["input_ids", "mask", "labels"])


@given(st.dictionaries(keys, st.integers()), st.dictionaries(keys, st.integers()), st.dictionaries(keys, st.integers()))
def test_what_a_side_sees(common, teacher, big):
    """Its own first, then that of all teachers, then what is common."""
    batch = {**common, **{f"teacher.{k}": v for k, v in teacher.items()}}
    batch |= {f"teacher.big.{k}": v for k, v in big.items()} | {"student.more": 1}
    assert parted(batch, "teacher", "big") == {**common, **teacher, **big}
    assert parted(batch, "teacher") == {**common, **teacher}
    assert parted(batch, "student") == {**common, "more": 1}


@pytest.mark.parametrize("name", [None, "big"])
def test_a_position_counts_where_both_masks_say_so(tagger, batches, objective, step, name):
    """A mask of the teacher's own, for all or for one by name."""
    (batch,) = batches([4, 2, 3])
    own = batch["attention_mask"].clone()
    own[0, 1] = 0
    inside = {"attention_mask": own}
    parts = {**batch, "teacher": inside if name is None else {"big": inside}}
    student, big, other = (tagger(8, pooled=False) for _ in range(3))
    tables = [hb.loss("kd_mse", teacher={"big": "logits"}), hb.loss("ce", labels="tags"), hb.loss("kd_mse")]
    made = objective(student, {"big": big, "other": other}, tables, first(parts))
    assert made.counts(first(parts), 3, torch.device("cpu")).tolist() == [8.0, 9.0, 8.0]
    logits, target = student(batch["input_ids"]), big(batch["input_ids"])
    want = (logits - target)[(own * batch["attention_mask"]).bool()].square().mean()
    assert step(made, [first(parts)], 3)[0][0].item() == pytest.approx(want.item(), abs=1e-6)


def test_a_mask_that_only_the_teacher_has(batches, objective, tagger):
    """A student that takes none has no padding either."""

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tagger(8, pooled=False)

        def forward(self, input_ids):
            return self.inner(input_ids)

    (batch,) = batches([4, 2, 3])
    parts = {"input_ids": batch["input_ids"], "teacher": {"attention_mask": batch["attention_mask"]}}
    made = objective(Bare(), tagger(12, pooled=False), [hb.loss("kl")], first(parts))
    assert made.counts(first(parts), 3, torch.device("cpu")).tolist() == [9.0]


def test_a_teacher_without_the_mask_that_the_student_has(tagger, batches, objective):
    """It would take its padding for tokens."""
    batch = nested(batches, [4, 2], [6, 1])
    del batch["teacher"]["attention_mask"]
    assert message(lambda: objective(tagger(8), tagger(12), [hb.loss("kl")], first(batch)), DataError) == (
        "the teacher takes 'attention_mask', and the batch has one for others only; give it one too: "
        "ones, if nothing of its input is padding"
    )
    batch["attention_mask"] = torch.ones(2, 6)  # of all that have none of their own
    objective(tagger(8), tagger(12), [hb.loss("kl")], first(batch))


def test_masks_of_two_shapes_in_a_later_batch(tagger, batches, objective):
    (batch,) = batches([4, 2])
    parts = {**batch, "teacher": {"attention_mask": batch["attention_mask"].clone()}}
    made = objective(tagger(pooled=False), tagger(pooled=False), [hb.loss("kl")], first(parts))
    parts["teacher"] = {"attention_mask": torch.ones(2, 5)}
    assert message(lambda: made.counts(first(parts), 2, torch.device("cpu")), DataError) == (
        "loss 'kl' obeys the masks 'attention_mask' of the student and of its teachers, and in this batch they are "
        "(2, 4) and (2, 5)"
    )
    del parts["attention_mask"]
    assert message(lambda: made.counts(first(parts), 2, torch.device("cpu")), DataError) == (
        "loss 'kl' obeys 'attention_mask', which the first batch had and this one lacks"
    )


def test_a_part_for_nobody(tagger, batches, objective):
    batch = nested(batches, [4, 2], [6, 1], [3, 3], names=["bgi", "wide"])
    both = {"big": tagger(), "wide": tagger()}
    assert message(lambda: objective(tagger(), both, [hb.loss("kl")], first(batch)), DataError) == (
        "the batch has 'teacher.bgi.input_ids', and there is no teacher 'bgi'; did you mean 'big'?"
    )
    batch = {"student": {"deep": {"input_ids": torch.ones(2, 3)}}, "labels": torch.zeros(2)}
    assert message(lambda: objective(tagger(), None, [hb.loss("ce")], first(batch)), DataError) == (
        "the batch has 'student.deep.input_ids', a table in a table; nothing of it would be used"
    )


def test_parts_for_teachers_do_no_harm_without_one(tagger, batches, objective):
    batch = nested(batches, [4, 2], [6, 1], names=["big"])
    objective(tagger(), None, [hb.loss("ce")], first(batch))


def test_labels_of_the_student_alone(tagger, batches, objective, step):
    batch = nested(batches, [4, 2], [6, 1])
    batch["student"]["labels"] = batch["labels"]
    batch["labels"] = 2 - batch["labels"]
    student = tagger(8)
    means, _ = step(objective(student, None, [hb.loss("ce")], first(batch)), [first(batch)], 2)
    want = nn.functional.cross_entropy(
        student(**{k: v for k, v in batch["student"].items() if k != "labels"}), batch["student"]["labels"]
    )
    assert means.item() == pytest.approx(want.item(), abs=1e-6)


def test_missing_keys_say_whose(tagger, batches, objective):
    batch = nested(batches, [4, 2], [6, 1], names=["big"])
    made = objective(tagger(), {"big": tagger()}, [hb.loss("kl")], first(batch))
    del batch["teacher"]
    with made.attached():
        assert message(lambda: made.forward(first(batch)), DataError) == (
            "the teacher 'big' gets 'input_ids', which the first batch had and this one lacks"
        )


@pytest.mark.parametrize("teacher", [True, False])
def test_micro_batches_with_uneven_masks_of_both_sides(tagger, batches, objective, step, split, teacher):
    (batch,) = batches([7, 1, 4, 2, 6, 3])
    own = (torch.rand(6, 7) > 0.3).long()
    parts = first({**batch, **({"teacher": {"attention_mask": own}} if teacher else {})})
    hidden = hb.loss("hidden_mse", student="blocks[0]", teacher="blocks[0]", projection="linear")
    made = objective(tagger(8, pooled=False), tagger(12, pooled=False), [hb.loss("kl"), hidden], parts)
    means, slope = step(made, [parts])
    found, gradient = step(made, split(parts))
    assert torch.allclose(found, means, rtol=0, atol=1e-6)
    assert torch.allclose(gradient, slope, rtol=0, atol=1e-6)


def test_training_and_evaluating_with_parts(tagger, batches, pack):
    """The evaluation data needs the student's part alone."""
    data = [nested(batches, [4, 2], [6, 1]), nested(batches, [3, 3], [2, 5])]
    student = tagger(8)
    run = hb.Distillation(tagger(12), student, [hb.loss("kl")], catalogue=pack)
    bare = [{k: v for k, v in one.items() if k != "teacher"} for one in data]
    frozen = torch.optim.SGD(student.parameters(), 0.0)
    found = run.fit(data, steps=1, optimizer=frozen, evaluate=bare, callbacks=[hb.callback("evaluate")]).metrics
    right = [(student(**one["student"]).argmax(-1) == one["labels"]).tolist() for one in data]
    assert found == {"accuracy": pytest.approx(sum(sum(r) for r in right) / 4)}
