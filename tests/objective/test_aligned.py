"""Teacher and student with tokens of their own: what compares positions refuses two texts, whatever their lengths."""

from functools import partial

import attrs
import pytest
import torch
from torch import nn

import hookbrew as hb
from hookbrew.config.tree import Data
from hookbrew.errors import ConfigError
from hookbrew.loop import Given
from hookbrew.objective import Names

OTHER = (
    "losses[0]: loss '{}' pairs the positions of student and {}, and 'input_ids' are other tokens on either side; "
    "compare pooled tensors, one row for each sample; or write aligned = true, if position i is the same token for both"
)
LENGTHS = (
    "losses[0]: loss '{}' pairs the positions of student and teacher, and 'input_ids' are two texts, (2, 4) and "
    "(2, 6), of different lengths; compare pooled tensors, one row for each sample"
)
LAYER = {"student": "blocks[0]", "teacher": "blocks[0]"}
FLOW = {side: ["blocks[0]", "blocks[1]"] for side in ("student", "teacher")}
POSITIONS = [
    hb.loss("kl"),
    hb.loss("hidden_mse", **LAYER),
    hb.loss("hidden_mse", **LAYER, mask=False),
    hb.loss("pkd", **LAYER),
    hb.loss("cka", **LAYER, mask=False),
    hb.loss("sp", **LAYER),
    hb.loss("rkd", **LAYER),
    hb.loss("pkt", **LAYER),
    hb.loss("nst", **FLOW),
    hb.loss("fsp", **FLOW),
]
SAMPLES = [hb.loss("sp", **LAYER, mask=False), hb.loss("fsp", **FLOW, mask=False)]
"""Losses that relate samples to samples, or features to features, in each model by itself."""


def kind(request):
    return request.table["type"]


def message(call):
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


def first(batch):
    return Given([batch]).first()[0]


def side(batches, lengths, seed=0):
    (one,) = batches(lengths, seed=seed)
    return {key: one[key] for key in ("input_ids", "attention_mask")}


def two(batches, student=(4, 2), teacher=(4, 3), **more):
    """Two texts, one for each side."""
    return first({"student": side(batches, student), "teacher": side(batches, teacher, 1), **more})


def bare(tagger):
    return tagger(8, pooled=False)


@pytest.mark.parametrize("loss", POSITIONS, ids=kind)
def test_two_texts_of_one_length_by_chance(tagger, batches, objective, loss):
    models, parts = (bare(tagger), bare(tagger)), two(batches)
    assert message(lambda: objective(*models, [loss], parts)) == OTHER.format(kind(loss), "teacher")
    objective(*models, [loss], parts, aligned=True)


@pytest.mark.parametrize("loss", SAMPLES, ids=kind)
def test_what_stays_within_a_model_takes_two_texts(tagger, batches, objective, loss):
    objective(bare(tagger), bare(tagger), [loss], two(batches))


@pytest.mark.parametrize("table", [hb.loss("sp", **LAYER, mask=False), hb.loss("rkd", **LAYER, mask=False)], ids=kind)
def test_relations_of_samples_take_texts_of_two_lengths_without_a_mask(tagger, batches, objective, table):
    objective(bare(tagger), bare(tagger), [table], two(batches, teacher=(6, 3)))


def test_attention_of_two_texts(batches, objective):
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.attention = nn.Embedding(20, 8), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, input_ids, attention_mask):
            hidden = self.embed(input_ids)
            return self.attention(hidden, hidden, hidden, key_padding_mask=attention_mask == 0)[0]

    def made(name, port, **said):
        table = hb.loss(name, student=f"attention:{port}", teacher=f"attention:{port}")
        return objective(Attending(), Attending(), [table], two(batches), **said)

    for name, port in (("attention_kl", "attn"), ("value_relation", "v")):
        assert message(lambda name=name, port=port: made(name, port)) == OTHER.format(name, "teacher")
        made(name, port, aligned=True)


def test_logits_that_choose_a_token(batches, objective):
    class Starts(nn.Module):
        def __init__(self):
            super().__init__()
            self.score = nn.Embedding(20, 1)

        def forward(self, input_ids, attention_mask):
            return self.score(input_ids).squeeze(-1)

    def made(**said):
        return objective(Starts(), Starts(), [hb.loss("kl")], two(batches, teacher=(4, 2)), classes="tokens", **said)

    assert message(made) == OTHER.format("kl", "teacher")
    made(aligned=True)


def test_pooled_logits_of_two_texts(tagger, batches, objective):
    labels = torch.zeros(2, dtype=torch.long)
    for teacher in ((4, 3), (6, 1)):
        objective(tagger(8), tagger(8), [hb.loss("kl"), hb.loss("ce")], two(batches, teacher=teacher, labels=labels))


def test_a_batch_whose_texts_are_the_same(tagger, batches, objective):
    """Each side has its own tensors, with its own padding and mask; labels are no tokens."""
    ours = side(batches, [4, 2]) | {"labels": torch.ones(2, 4, dtype=torch.long)}
    theirs = {"input_ids": ours["input_ids"].clone(), "attention_mask": ours["attention_mask"].clone()}
    theirs["labels"] = torch.zeros(2, 4, dtype=torch.long)
    theirs["input_ids"][theirs["attention_mask"] == 0] = 19
    theirs["attention_mask"][0, 1] = 0
    objective(bare(tagger), bare(tagger), POSITIONS, first({"student": ours, "teacher": theirs}))
    theirs["input_ids"][1, 1] += 1
    assert "other tokens" in message(
        lambda: objective(bare(tagger), bare(tagger), [hb.loss("kl")], first({"student": ours, "teacher": theirs}))
    )


def test_one_side_has_its_own_and_the_other_what_is_common(tagger, batches, objective):
    for part in ("student", "teacher"):
        parts = first({**side(batches, [4, 2]), part: side(batches, [4, 2], 1)})
        made = partial(objective, bare(tagger), bare(tagger), [hb.loss("kl")], parts)
        assert message(made) == OTHER.format("kl", "teacher")
        made(aligned=True)


def test_the_teacher_whose_text_is_another(tagger, batches, objective):
    batch = {**side(batches, [4, 2]), "teacher": {"big": side(batches, [4, 2], 1)}}
    both = {"small": bare(tagger), "big": bare(tagger)}
    assert message(lambda: objective(bare(tagger), both, [hb.loss("kl")], first(batch))) == (
        OTHER.format("kl", "teacher 'big'")
    )
    tables = [
        hb.loss("hidden_mse", student="blocks[0]", teacher={"small": "blocks[0]"}),
        hb.loss("sp", student="blocks[0]", teacher={"big": "blocks[0]"}, mask=False),
    ]
    objective(bare(tagger), both, tables, first(batch))


@pytest.mark.parametrize("loss", POSITIONS, ids=kind)
@pytest.mark.parametrize("aligned", [True, False])
def test_two_texts_of_two_lengths(tagger, batches, objective, loss, aligned):
    """The lengths are to blame, not the mask; to say that they are aligned does not help."""
    models, parts = (bare(tagger), bare(tagger)), two(batches, teacher=(6, 3))
    assert message(lambda: objective(*models, [loss], parts, aligned=aligned)) == LENGTHS.format(kind(loss))


def test_positions_are_compared_when_told(tagger, batches, objective, step):
    parts, student, teacher = two(batches), bare(tagger), bare(tagger)
    made = objective(student, teacher, [hb.loss("kd_mse")], parts, aligned=True)
    logits, target = (model(parts[f"{part}.input_ids"]) for model, part in ((student, "student"), (teacher, "teacher")))
    there = (parts["student.attention_mask"] * parts["teacher.attention_mask"]).bool()
    want = (logits - target)[there].square().mean().item()
    assert step(made, [parts], 2)[0].item() == pytest.approx(want, abs=1e-6)


def test_nothing_to_align(tagger, batches, pack):
    nothing = "student and teacher have no tokens of their own in the batch, so nothing would read it; leave it out"
    (batch,) = batches([4, 2])
    masked = {**batch, "teacher": {"attention_mask": batch["attention_mask"].clone()}}
    slow = {"steps": 1, "optimizer": None}
    for given in (batch, masked):
        run = hb.Distillation(bare(tagger), bare(tagger), [hb.loss("kl")], aligned=True, catalogue=pack)
        assert message(lambda run=run, given=given: run.fit([given], **slow)) == f"data.aligned: {nothing}"
    tasks = {"a": hb.Task(losses=[hb.loss("kl")], teacher=bare(tagger), aligned=True)}
    run = hb.Distillation(None, bare(tagger), tasks=tasks, catalogue=pack)
    assert message(lambda: run.fit({"a": [batch]}, **slow)) == f"tasks.a.data.aligned: {nothing}"


def test_a_run_of_aligned_texts(tagger, batches, pack):
    """As a keyword, and of a task; a task without a teacher has the same data."""
    labels = torch.zeros(2, dtype=torch.long)
    batch = two(batches, labels=labels)
    run = hb.Distillation(bare(tagger), bare(tagger), [hb.loss("kl")], aligned=True, catalogue=pack)
    assert run.fit([batch], steps=1).step == 1
    tasks = {
        "soft": hb.Task(losses=[hb.loss("kl")], teacher=bare(tagger), aligned=True),
        "hard": hb.Task(losses=[hb.loss("ce", labels="tags")], aligned=True),
    }
    run = hb.Distillation(None, bare(tagger), tasks=tasks, catalogue=pack)
    tagged = {**batch, "tags": torch.zeros(2, 4, dtype=torch.long)}
    assert run.fit({"soft": [batch], "hard": [tagged]}, steps=2).step == 2


def test_a_file_says_all_that_python_does():
    """What the keys of a batch stand for is read off `[data]` field by field."""
    said = {field.name: field.default for field in attrs.fields(Data)}
    assert {field.name: field.default for field in attrs.fields(Names)}.items() <= said.items()
