"""Several logits with a label for each, classes that are padding, and classes that are tokens."""

import pytest
import torch
from torch import nn

import hookbrew as hb
from hookbrew.config import structure_loss
from hookbrew.errors import ConfigError, DataError
from hookbrew.objective import Names, Objective
from hookbrew.plugin import catalogue, hookimpl, options


def message(call, kind=ConfigError):
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


class Span(nn.Module):
    """Scores each token, (B, L), as the start and as the end of a span."""

    def __init__(self, width=8):
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.head = nn.Linear(width, 2)

    def forward(self, input_ids, attention_mask=None):
        start, end = self.head(self.embed(input_ids).cumsum(1)).unbind(-1)
        return {"start": start, "end": end}


BOTH = {"logits": [":out.start", ":out.end"], "labels": ["starts", "ends"]}


@pytest.fixture
def spans(batches):
    (batch,) = batches([7, 2, 4, 3, 6, 5])
    ends = batch["attention_mask"].sum(1) - 1
    return {k: batch[k] for k in ("input_ids", "attention_mask")} | {"starts": ends // 2, "ends": ends}


TABLES = [
    hb.loss("kl", temperature=2),
    hb.loss("kd_ce"),
    hb.loss("kd_mse"),
    hb.loss("rkl"),
    hb.loss("jsd"),
    hb.loss("ce"),
]


def test_a_list_is_each_of_its_tensors_by_itself(spans, objective, step):
    student, teacher = Span(8), Span(12)
    made = objective(student, teacher, TABLES, spans, classes="tokens", **BOTH)
    means, slope = step(made, [spans])
    assert [term.name for term in made.terms][:4] == ["kl/0", "kl/1", "kd_ce/0", "kd_ce/1"]
    found, slopes = [], []
    for logits, labels in zip(*BOTH.values(), strict=True):
        names = {"logits": logits, "labels": labels, "classes": "tokens"}
        tables = [hb.loss(**{**t.table, "teacher": logits}) if t.table["type"] != "ce" else t for t in TABLES]
        one = step(objective(student, teacher, tables, spans, **names), [spans])
        found.append(one[0])
        slopes.append(one[1])
    assert torch.allclose(means, torch.stack(found, dim=1).flatten(), rtol=0, atol=1e-6)
    assert torch.allclose(slope, sum(slopes), rtol=0, atol=1e-5)


def test_the_start_of_a_span_by_hand(spans, objective, step):
    """One sample after the other, of which only what is no padding is looked at."""
    student, teacher = Span(8), Span(12)
    made = objective(student, teacher, [hb.loss("kl", temperature=2), hb.loss("ce")], spans, classes="tokens", **BOTH)
    want = {"kl/0": 0.0, "kl/1": 0.0, "ce/0": 0.0, "ce/1": 0.0}
    for row, length in enumerate(spans["attention_mask"].sum(1).tolist()):
        ids = spans["input_ids"][row : row + 1, :length]
        for place, (kind, key) in enumerate((("start", "starts"), ("end", "ends"))):
            ours, theirs = (model(ids)[kind][0].detach().double() for model in (student, teacher))
            p, q = (theirs / 2).softmax(0), (ours / 2).softmax(0)
            want[f"kl/{place}"] += 4 * float((p * (p / q).log()).sum()) / 6
            want[f"ce/{place}"] -= float(ours.log_softmax(0)[spans[key][row]]) / 6
    found = dict(zip((term.name for term in made.terms), step(made, [spans])[0].tolist(), strict=True))
    assert found == {name: pytest.approx(value, abs=1e-6) for name, value in want.items()}


def test_more_padding_and_micro_batches_change_nothing(spans, objective, step, split):
    merge = {"by": "probabilities", "confidence": "labels"}
    both = {"a": Span(12).double(), "b": Span(16).double()}
    made = objective(Span(8).double(), both, TABLES, spans, merge=merge, classes="tokens", **BOTH)
    means, slope = step(made, [spans])
    wider = {k: nn.functional.pad(v, (0, 4)) if v.dim() == 2 else v for k, v in spans.items()}
    cut = [{k: v[:, :7] if v.dim() == 2 else v for k, v in part.items()} for part in split(wider)]
    for other in ([wider], split(spans), cut):
        found, gradient = step(made, other)
        assert torch.allclose(found, means, rtol=0, atol=1e-6)
        assert torch.allclose(gradient, slope, rtol=0, atol=1e-6)


def test_tokens_that_are_no_classes(spans, objective, tagger):
    student = tagger(pooled=False)
    batch = {**spans, "labels": torch.zeros(6, 7, dtype=torch.long)}
    assert message(lambda: objective(student, None, [hb.loss("ce")], batch, classes="tokens")) == (
        'losses[0]: classes = "tokens" says that logits (6, 7, 3) are of tokens, (batch, tokens), of which the mask '
        "'attention_mask' says which are there; it is (6, 7)"
    )
    bare = {k: v for k, v in spans.items() if k != "attention_mask"}
    assert message(lambda: objective(Span(), None, [hb.loss("ce")], bare, classes="tokens", **BOTH)) == (
        'losses[0]: classes = "tokens" says that logits (6, 7) are of tokens, (batch, tokens), of which the mask '
        "'attention_mask' says which are there; no such key"
    )


def test_a_span_that_begins_after_the_text(spans, objective):
    """As transformers marks one that was cut off; here it is -100."""
    spans["starts"][1] = 7
    assert message(lambda: objective(Span(), None, [hb.loss("ce")], spans, classes="tokens", **BOTH)) == (
        "losses[0]: labels: there is a 7, and there are 7 tokens; the first is 0, and -100 is none"
    )
    spans["starts"][1] = -100
    made = objective(Span(), None, [hb.loss("ce")], spans, classes="tokens", **BOTH)
    assert made.counts(spans, 6, torch.device("cpu")).tolist() == [5.0, 6.0]


def test_a_padded_vocabulary_is_cut_on_both_sides(batches, objective, step, tagger):
    """Whatever it holds: probability there would be missing from all others."""
    (batch,) = batches([4, 2, 3])
    student, teacher = tagger(8, classes=6, pooled=False), tagger(12, classes=4, pooled=False)
    with torch.no_grad():
        student.head.bias[3:] = 9.0
        teacher.head.bias[3:] = 7.0
    tables = [hb.loss("kl", temperature=2), hb.loss("ce"), hb.loss("kd_mse")]
    made = objective(student, teacher, tables, batch, classes=3, labels="tags")
    means, slope = step(made, [batch])
    cut = [tagger(w, classes=3, pooled=False) for w in (8, 12)]
    for small, large in zip(cut, (student, teacher), strict=True):
        kept = {k: v[:3] if k.startswith("head") else v for k, v in large.state_dict().items()}
        small.load_state_dict(kept)
    want, expected = step(objective(*cut, tables, batch, labels="tags"), [batch])
    assert torch.allclose(means, want, rtol=0, atol=1e-6)
    assert slope.norm().item() == pytest.approx(expected.norm().item(), abs=1e-6)
    with made.attached(), torch.no_grad():
        assert made.predict(batch)[0].shape == (3, 4, 3)


def test_vocabularies_that_differ_are_told_apart_from_classes(batches, objective, tagger):
    (batch,) = batches([4, 2])
    both = {"big": tagger(classes=1500), "small": tagger(classes=1504)}
    assert message(lambda: objective(tagger(classes=1504), both, [hb.loss("kl")], batch)) == (
        "losses[0]: student (2, 1504) and teacher 'big' (2, 1500) differ: they must have the same classes; if the rest "
        "is padding of a vocabulary, write data.classes = 1500"
    )
    objective(tagger(classes=1504), both, [hb.loss("kl")], batch, classes=1500)


def test_more_classes_than_logits(batches, objective, tagger):
    assert message(lambda: objective(tagger(), None, [hb.loss("ce")], *batches([4, 2]), classes=5)) == (
        "losses[0]: classes = 5, and logits are (2, 3)"
    )


def test_labels_that_are_padding(batches, objective, tagger):
    (batch,) = batches([4, 2])
    batch["labels"][1] = 2
    assert message(lambda: objective(tagger(), None, [hb.loss("ce")], batch, classes=2)) == (
        "losses[0]: labels: there is a 2, and classes = 2; the first is 0, and -100 is none"
    )


def test_a_projection_of_logits_is_built_to_what_is_left(batches, objective, tagger, step):
    (batch,) = batches([4, 2])
    tables = [hb.loss("kd_mse", projection="linear")]
    made = objective(tagger(classes=6), tagger(classes=4), tables, batch, classes=3)
    assert [tuple(p.shape) for p in made.extras.parameters()] == [(3, 3), (3,)]
    step(made, [batch])


def test_as_many_labels_as_logits(spans, objective):
    names = {**BOTH, "labels": ["starts"]}
    assert message(lambda: objective(Span(), None, [hb.loss("ce")], spans, classes="tokens", **names)) == (
        "losses[0]: labels: 1 keys (starts) for at least 2 tensors; write one for each"
    )
    table = hb.loss("ce", student=":out.start")
    assert message(lambda: objective(Span(), None, [table], spans, classes="tokens", **BOTH)) == (
        "losses[0]: labels: 2 keys (starts, ends) for one tensor; write one for each"
    )
    made = objective(Span(), Span(), [hb.loss("kl")], spans, classes="tokens", **names)
    with made.attached(), torch.no_grad():
        assert message(lambda: made.predict(spans), DataError) == (
            "there are 2 tensors of logits, and 1 keys of labels: starts"
        )


def test_labels_of_logits_are_not_those_of_layers(batches, tagger):
    """A loss on two layers would read one key for each, though they are of two heads."""

    def apart(student, labels):
        return student.square().mean() + 0 * labels.sum()

    @options
    class Apart:
        takes = "hidden"

        def build(self):
            return apart

    class Plugin:
        @hookimpl
        def hookbrew_register_losses(self, register):
            register("apart", Apart)

    known = catalogue(discover=False, plugins=[Plugin()])
    (batch,) = batches([4, 2])

    def measure(**table):
        request = hb.loss("apart", student="blocks[*]", mask=False, **table)
        made = Objective(tagger(), None, [structure_loss(request.table, known)], Names(labels=["labels", "tags"]))
        with made.attached():
            made.measure(batch)

    assert message(measure) == (
        "losses[0]: labels: data.labels names labels, tags, one for each tensor of logits, and loss 'apart' compares "
        'others; name one, as in labels = "labels"'
    )
    measure(labels="labels")


def test_exact_matches_of_spans(spans, pack):
    """Both ends are right, in batches of different numbers of tokens."""
    student = Span()
    short = {k: v[1:, :6] if v.dim() == 2 else v[1:] for k, v in spans.items()}
    out = student(short["input_ids"])
    short["starts"], short["ends"] = (
        out[k].detach().masked_fill(short["attention_mask"] == 0, -9.0).argmax(-1) for k in ("start", "end")
    )
    short["ends"][0], short["starts"][1] = 1 - short["ends"][0], -100
    run = hb.Distillation(None, student, [hb.loss("ce")], catalogue=pack, classes="tokens", **BOTH)
    frozen = torch.optim.SGD(student.parameters(), 0.0)
    names = hb.callback("evaluate", metrics=["exact", "accuracy", "loss"])
    found = run.fit([spans], steps=1, optimizer=frozen, evaluate=[spans, short], callbacks=[names]).metrics
    exact, right, loss = [], [], []
    for batch in (spans, short):
        out, there = student(batch["input_ids"]), batch["attention_mask"].bool()
        for row in range(len(there)):
            met = []
            for kind, key in (("start", "starts"), ("end", "ends")):
                label, ours = int(batch[key][row]), out[kind][row][there[row]].detach().double()
                if label != -100:
                    met.append(int(ours.argmax()) == label)
                    loss.append(-float(ours.log_softmax(0)[label]))
            exact.append(all(met))
            right += met
    assert 0 < sum(exact) < sum(right) < len(right)
    assert found == {
        "exact": pytest.approx(sum(exact) / len(exact)),
        "accuracy": pytest.approx(sum(right) / len(right)),
        "loss": pytest.approx(sum(loss) / len(loss), abs=1e-6),
    }
