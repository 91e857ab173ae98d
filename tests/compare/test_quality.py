"""Accuracy, loss, calibration and agreement against other code and float64; padding counts for nothing."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassCalibrationError

from hookbrew.compare import compare
from hookbrew.compare.quality import Answer, Tally
from hookbrew.errors import ConfigError, DataError


def quality(models, batches, **options):
    found = compare(models, batches, sizes=[], **options)
    return [one.quality for one in found.models]


def rows(model, batches, tokens, shift=False):
    """Logits (N, C) and labels (N,) in float64, of the places that count."""
    logits, labels = [], []
    for batch in batches:
        with torch.no_grad():
            found = model.double()(batch["input_ids"], batch["attention_mask"])
        there, told = batch["attention_mask"].bool(), batch["labels"]
        if tokens and shift:
            found, told, there = found[:, :-1], told[:, 1:], there[:, 1:] & there[:, :-1]
        keep = (there & (told != -100)) if tokens else told != -100
        logits.append(found[keep])
        labels.append(told[keep])
    model.float()
    return torch.cat(logits).numpy(), torch.cat(labels).numpy()


def softmax(logits):
    each = np.exp(logits - logits.max(1, keepdims=True))
    return each / each.sum(1, keepdims=True)


def ece(logits, labels):
    """Guo et al. 2017, equation 3, bin by bin."""
    shares = softmax(logits)
    sure, right = shares.max(1), shares.argmax(1) == labels
    total = 0.0
    for m in range(1, 16):
        inside = (sure > (m - 1) / 15) & (sure <= m / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    return total


@pytest.mark.parametrize(("tokens", "causal"), [(False, None), (True, None), (True, True)])
def test_numbers_are_those_of_an_oracle(net, batches, tokens, causal):
    models = {"teacher": net(8, tokens, seed=1), "student": net(6, tokens, seed=2)}
    data = batches(tokens=tokens)
    found = quality(models, data, causal=causal)
    every = [rows(model, data, tokens, bool(causal)) for model in models.values()]
    for one, (logits, labels) in zip(found, every, strict=True):
        shares = softmax(logits)
        loss = -np.log(shares[np.arange(len(labels)), labels]).mean()
        assert one.labelled == len(labels)
        assert one.accuracy == pytest.approx((shares.argmax(1) == labels).mean(), abs=1e-12)
        assert one.loss == pytest.approx(loss, rel=1e-6)
        assert one.perplexity == (pytest.approx(math.exp(loss), rel=1e-6) if causal else None)
        assert one.ece == pytest.approx(ece(logits, labels), abs=1e-6)
        metric = MulticlassCalibrationError(num_classes=4, n_bins=15)
        assert one.ece == pytest.approx(float(metric(torch.tensor(shares), torch.tensor(labels))), abs=1e-6)
    same = every[0][0].argmax(1) == every[1][0].argmax(1)
    assert found[0].agreement is None
    assert (found[1].agreement, found[1].compared) == (pytest.approx(same.mean(), abs=1e-12), len(same))
    assert found[1].ece > 0.05
    assert 0 < found[1].agreement < 1


@pytest.mark.parametrize("tokens", [False, True])
def test_padding_changes_nothing(net, batches, tokens):
    models = {"teacher": net(8, tokens, seed=1), "student": net(6, tokens, seed=2)}
    bare = quality(models, batches(tokens=tokens))
    padded = quality(models, batches(tokens=tokens, width=5))
    for one, other in zip(bare, padded, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.ece == pytest.approx(other.ece, abs=1e-6)
        assert (one.accuracy, one.agreement, one.compared) == (other.accuracy, other.agreement, other.compared)


def test_how_batches_are_cut_changes_nothing(net, batches):
    models = {"teacher": net(8, True, seed=1), "student": net(6, True, seed=2)}
    (whole,) = batches(batches=1, size=12, tokens=True)
    parts = [{key: value[i : i + 5] for key, value in whole.items()} for i in (0, 5, 10)]
    for one, other in zip(quality(models, [whole]), quality(models, parts), strict=True):
        assert one.ece == pytest.approx(other.ece, abs=1e-6)
        assert (one.accuracy, one.agreement, one.labelled) == (other.accuracy, other.agreement, other.labelled)


def test_places_without_a_label_count_where_no_place_has_one(net, batches):
    models = {"teacher": net(8, True, seed=1), "student": net(6, True, seed=2)}
    data = batches(tokens=True)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in data)
    odd = [b["labels"].masked_fill(b["input_ids"] % 2 == 0, -100) for b in data]
    some = [{**batch, "labels": labels} for batch, labels in zip(data, odd, strict=True)]
    assert quality(models, some)[1].compared == sum(
        int(((batch["labels"] != -100) & batch["attention_mask"].bool()).sum()) for batch in some
    )
    none = [{**batch, "labels": torch.full_like(batch["labels"], -100)} for batch in data]
    without = [{key: value for key, value in batch.items() if key != "labels"} for batch in data]
    for unlabelled in (none, without):
        one = quality(models, unlabelled)[1]
        assert (one.compared, one.labelled, one.accuracy, one.ece, one.loss) == (tokens, 0, None, None, None)
        assert one.agreement == pytest.approx(quality(models, data)[1].agreement)


def test_soft_labels_are_their_likeliest_class(net, batches):
    models = {"one": net(seed=1)}
    data = batches()
    soft = [{**b, "labels": 0.9 * nn.functional.one_hot(b["labels"], 4) + 0.025} for b in data]
    assert quality(models, soft)[0].accuracy == quality(models, data)[0].accuracy
    wrong = [{**b, "labels": torch.ones(len(b["labels"]), 4)} for b in data]
    with pytest.raises(DataError, match="model 'one': a soft label sums to 4; expected 1, or 0 where there is none"):
        quality(models, wrong)


def test_several_logits_are_counted_alike(net, batches):
    class Span(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.start, self.end = net(seed=seed), net(seed=seed + 10)

        def forward(self, input_ids, attention_mask):
            return {"start": self.start(input_ids, attention_mask), "end": self.end(input_ids, attention_mask)}

    data = [{**b, "ends": b["labels"].flip(0)} for b in batches()]
    models = {"teacher": Span(1), "student": Span(2)}
    found = quality(models, data, logits=[":out.start", ":out.end"], labels=["labels", "ends"])
    ends = [{**b, "labels": b["ends"]} for b in data]
    alone = [
        quality({name: getattr(model, part) for name, model in models.items()}, d)
        for part, d in (("start", data), ("end", ends))
    ]
    for place in (0, 1):
        assert found[place].accuracy == pytest.approx((alone[0][place].accuracy + alone[1][place].accuracy) / 2)
    assert found[1].agreement == pytest.approx((alone[0][1].agreement + alone[1][1].agreement) / 2)


def test_a_model_of_language_has_to_say_what_its_labels_are(batches):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1, n_positions=16))
    data = [{**b, "labels": b["input_ids"]} for b in batches()]
    with pytest.raises(ConfigError, match="GPT2LMHeadModel predicts the next token, and the comparison reads labels"):
        quality({"one": model}, data)
    (one,) = quality({"one": model}, data, causal=True)
    theirs = total = 0.0
    for batch in data:
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        with torch.no_grad():
            loss = model.eval()(batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        count = int((labels[:, 1:] != -100).sum())
        theirs, total = theirs + float(loss) * count, total + count
    assert one.labelled == total
    assert one.perplexity == pytest.approx(math.exp(theirs / total), rel=1e-5)


def test_models_with_other_places_have_no_agreement(net, batches):
    found = compare(
        {"teacher": net(tokens=True), "student": net()},
        [{key: value for key, value in batch.items() if key != "labels"} for batch in batches()],
        sizes=[],
    )
    assert found.models[1].quality.agreement is None
    assert found.notes == ("student: no agreement with teacher: places [(7,)] and [(7, 6)] differ",)


def test_other_tokens_are_not_compared_by_position(net, batches):
    models = {"teacher": net(8, True, seed=1), "student": net(6, True, seed=2)}
    data = []
    for batch in batches(tokens=True):
        ids = batch.pop("input_ids")
        data.append({**batch, "teacher": {"input_ids": ids.flip(1)}, "student": {"input_ids": ids}})
    found = compare(models, data, sizes=[])
    assert found.models[1].quality.agreement is None
    assert found.models[1].similarity.over == "35 samples"
    assert found.notes == ("student: no agreement with teacher: they read other tokens",)
    said = compare(models, data, sizes=[], aligned=True)
    assert said.models[1].similarity.over.endswith("tokens")
    assert said.models[1].quality.agreement is not None


def test_each_bin_has_its_places():
    sure = torch.tensor([0.52, 0.65, 0.9, 0.95, 0.99], dtype=torch.float64)
    logits = torch.stack([sure, 1 - sure], dim=1).log()
    tally = Tally()
    tally.add(Answer(logits, torch.tensor([0, 0, 1, 0, 0]), torch.ones(5, dtype=torch.bool)))
    bins = tally.quality(causal=False).bins
    assert {place: each.count for place, each in enumerate(bins) if each.count} == {7: 1, 9: 1, 13: 1, 14: 2}
    assert (bins[13].accuracy, bins[14].confidence) == (0.0, pytest.approx(0.97))
