"""Several teachers become one: against numpy in float64, TextBrewer's value, and laws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hookbrew as hb
from hookbrew.config import Merge
from hookbrew.errors import ConfigError, ObjectiveError
from hookbrew.objective.merge import merged

SHARES = [0.2, 0.5, 0.3]


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def trust(teachers, labels, weights):
    """The shares of CA-MKD, eq. 2, row by row; a row without a label trusts all alike."""
    logs = log_softmax(teachers)
    shares = np.empty(teachers.shape[:-1])
    for row in np.ndindex(labels.shape):
        loss = np.array([-one[(*row, max(labels[row], 0))] for one in logs])
        doubt = np.exp(loss) / np.exp(loss).sum()
        found = (1 - doubt) / (len(teachers) - 1) if labels[row] >= 0 else np.ones(len(teachers)) / len(teachers)
        shares[(slice(None), *row)] = found * weights / (found * weights).sum()
    return shares


def sure(teachers, weights):
    logs = log_softmax(teachers)
    weight = np.exp((np.exp(logs) * logs).sum(-1)) * np.reshape(weights, (-1, *[1] * (teachers.ndim - 2)))
    return weight / weight.sum(0)


def expected(teachers, labels, *, by="logits", weights=(1, 1, 1), confidence=None, temperature=1.0):
    """The oracle, (..., C): float64, written from the formulas."""
    share = np.array(weights, float) / sum(weights)
    if confidence == "labels":
        share = trust(teachers, labels, share)
    elif confidence == "entropy":
        share = sure(teachers, share)
    else:
        share = share.reshape(-1, *[1] * (teachers.ndim - 2)) * np.ones(teachers.shape[:-1])
    if by == "logits":
        return (share[..., None] * teachers).sum(0)
    return temperature * np.log((share[..., None] * np.exp(log_softmax(teachers / temperature))).sum(0))


@pytest.mark.parametrize("shape", [(5, 4), (3, 2, 4)])
@pytest.mark.parametrize("by", ["logits", "probabilities"])
@pytest.mark.parametrize("confidence", [None, "labels", "entropy"])
@pytest.mark.parametrize("weights", [(1, 1, 1), (2.0, 5.0, 3.0)])
def test_against_numpy(shape, by, confidence, weights):
    random = np.random.default_rng(0)
    teachers = random.normal(0, 3, (3, *shape))
    labels = random.integers(-1, 4, shape[:-1])
    labels[labels < 0] = -100
    want = expected(teachers, labels, by=by, weights=weights, confidence=confidence, temperature=3.0)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        given_ = [torch.from_numpy(one).to(dtype) for one in teachers]
        found = merged(given_, weights, Merge(by=by, confidence=confidence), 3.0, torch.from_numpy(labels))
        assert found.dtype == dtype
        np.testing.assert_allclose(found.numpy(), want, rtol=0, atol=tolerance)


def test_16_bit_logits_are_merged_in_32():
    """Rounded again to bfloat16 the mean would be 0.2 off here."""
    teachers = [torch.tensor([[100.0, 1.0]]), torch.tensor([[100.5, 1.0]]), torch.tensor([[101.0, 1.0]])]
    found = merged([one.bfloat16() for one in teachers], [1, 1, 2], Merge(), 1.0, None)
    assert found.dtype == torch.float32
    assert found[0, 0].item() == 100.625


@pytest.mark.parametrize("by", ["logits", "probabilities"])
@pytest.mark.parametrize("confidence", [None, "labels", "entropy"])
def test_a_class_that_all_rule_out_stays_out(by, confidence):
    """Also where one teacher rules the label out, and so counts for nothing."""
    teachers = [torch.tensor([[2.0, 1.0, -torch.inf], [0.0, 1.0, 0.0]]) for _ in range(2)]
    teachers[0][1, 1] = -torch.inf
    found = merged(teachers, [1, 1], Merge(by=by, confidence=confidence), 2.0, torch.tensor([0, 1]))
    assert not found.isnan().any()
    assert found[0, 2] == -torch.inf
    if confidence == "labels":
        assert torch.allclose(found[1].softmax(0), teachers[1][1].softmax(0))


numbers = st.floats(-8, 8, allow_nan=False, width=32)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=2, max_size=4), st.data())
def test_laws(rows, data):
    """The order of teachers changes nothing; a teacher twice is one of twice the weight; equal ones are that one."""
    teachers = [torch.tensor([row], dtype=torch.float64) for row in rows]
    weights = data.draw(st.lists(st.floats(0.1, 9), min_size=len(rows), max_size=len(rows)))
    by = data.draw(st.sampled_from(["logits", "probabilities"]))
    confidence = data.draw(st.sampled_from([None, "labels", "entropy"]))
    labels, merge = torch.tensor([data.draw(st.sampled_from([-100, 0, 2]))]), Merge(by=by, confidence=confidence)
    found = merged(teachers, weights, merge, 2.0, labels)
    turned = merged(teachers[::-1], weights[::-1], merge, 2.0, labels)
    assert torch.allclose(found, turned, atol=1e-9)
    if confidence is None:
        heavier = merged(teachers, [2 * weights[0], *weights[1:]], merge, 2.0, labels)
        assert torch.allclose(merged([teachers[0], *teachers], [weights[0], *weights], merge, 2.0, labels), heavier)
    same = merged([teachers[0]] * len(rows), weights, merge, 2.0, labels)
    assert torch.allclose(same.softmax(-1), teachers[0].softmax(-1), atol=1e-9)


def message(call, kind=ConfigError):
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def test_shapes_that_differ():
    """Such as a teacher has in a later batch only; those of the first are measured."""
    assert message(
        lambda: merged([torch.ones(2, 3), torch.ones(2, 4)], [1, 1], Merge(), 1.0, None), ObjectiveError
    ) == ("the teachers' logits are (2, 3) and (2, 4); they cannot be merged")


class Fixed(nn.Module):
    """Gives the same logits, whatever comes, and may learn them."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, input_ids):
        return self.logits


def x(seed, *shape):
    """The deterministic inputs of textbrewer.md, section 4."""
    flat = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (2 * torch.sin(seed + 0.37 * flat**2)).reshape(shape)


def test_the_value_of_textbrewer(objective, step):
    """Its MultiTeacherDistiller averages logits; measured with the wheel and with git."""
    batch = {"input_ids": torch.zeros(2, 1, dtype=torch.long)}
    teachers = {"a": Fixed(x(8, 2, 5)), "b": Fixed(x(9, 2, 5))}
    tables = [hb.loss("kd_ce", temperature=4, t_squared=False)]
    made = objective(Fixed(x(7, 2, 5)), teachers, tables, batch)
    means, _ = step(made, [batch])
    assert abs(means.item() - 1.6410810498) < 1e-9


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_probabilities_are_those_at_the_temperature_of_the_loss(objective, step, temperature):
    logits = [x(8, 2, 5), x(9, 2, 5)]
    batch = {"input_ids": torch.zeros(2, 1, dtype=torch.long)}
    tables = [hb.loss("kd_ce", temperature=temperature)]
    merge = {"by": "probabilities", "weights": {"b": 3.0}}
    made = objective(Fixed(x(7, 2, 5)), dict(zip("ab", map(Fixed, logits), strict=True)), tables, batch, merge=merge)
    soft = [np.exp(log_softmax(one.numpy() / temperature)) for one in logits]
    target = 0.25 * soft[0] + 0.75 * soft[1]
    want = -(target * log_softmax(x(7, 2, 5).numpy() / temperature)).sum(-1).mean() * temperature**2
    assert step(made, [batch])[0].item() == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("reads", [True, False])
def test_confidence_reads_the_labels_of_the_batch(tagger, batches, objective, step, reads):
    """Whether or not the loss itself reads them; a position without one trusts all alike."""
    (batch,) = batches([4, 2, 3])
    batch["tags"][0, 1] = -100
    student, a, b = (tagger(8, pooled=False).double() for _ in range(3))
    tables = [hb.loss("kd_ce", temperature=2, probability_shift=reads)]
    merge = {"confidence": "labels"}
    made = objective(student, {"a": a, "b": b}, tables, batch, merge=merge, labels="tags")
    logits = [m(batch["input_ids"], batch["attention_mask"]).detach() for m in (student, a, b)]
    teachers = np.stack([one.numpy() for one in logits[1:]])
    target = torch.from_numpy(expected(teachers, batch["tags"].numpy(), weights=(1, 1), confidence="labels"))
    single = objective(Fixed(logits[0]), Fixed(target), tables, batch, labels="tags")
    assert torch.allclose(step(made, [batch])[0], step(single, [batch])[0], rtol=0, atol=1e-12)
    assert not torch.allclose(target, logits[1:][0] / 2 + logits[2] / 2, atol=1e-3)


def test_confidence_without_labels(tagger, batches, objective):
    (batch,) = batches([4, 2, 3])
    models = {"a": tagger(), "b": tagger()}
    bare = {k: v for k, v in batch.items() if k != "labels"}
    tables = [hb.loss("kl")]
    assert message(lambda: objective(tagger(), models, tables, bare, merge={"confidence": "labels"})) == (
        'losses[0]: merge.confidence = "labels" needs one label for each row of (3, 3), and there are none; '
        '"entropy" needs none'
    )
    soft = {**batch, "labels": torch.full((3, 3), 1 / 3)}
    assert message(lambda: objective(tagger(), models, tables, soft, merge={"confidence": "labels"})) == (
        'losses[0]: merge.confidence = "labels" needs one label for each row of (3, 3), and they are torch.float32 '
        '(3, 3); "entropy" needs none'
    )


def test_confidence_of_several_logits_reads_the_labels_of_each(objective, step):
    """A span's end is not trusted by where it starts."""
    batch = {"input_ids": torch.zeros(2, 1), "start": torch.tensor([0, 1]), "end": torch.tensor([2, 3])}

    class Two(Fixed):
        def forward(self, input_ids):
            return {"first": self.logits[0], "second": self.logits[1]}

    selectors = [":out.first", ":out.second"]
    models = [Two(x(s, 2, 2, 5)) for s in (7, 8, 9)]
    merge, both = {"confidence": "labels"}, dict(zip("ab", models[1:], strict=True))
    made = objective(models[0], both, [hb.loss("kl")], batch, merge=merge, logits=selectors, labels=["start", "end"])
    means, _ = step(made, [batch])
    for place, key in enumerate(("start", "end")):
        one = [Fixed(m.logits.detach()[place]) for m in models]
        single = objective(one[0], {"a": one[1], "b": one[2]}, [hb.loss("kl")], batch, merge=merge, labels=key)
        assert step(single, [batch])[0].item() == pytest.approx(means[place].item(), abs=1e-14)


@pytest.mark.parametrize("by", ["logits", "probabilities"])
@pytest.mark.parametrize("confidence", [None, "labels", "entropy"])
@pytest.mark.parametrize("names", [{}, {"causal": True}, {"classes": 31}])
def test_16_bit_logits_have_32_bit_losses(objective, step, by, confidence, names):
    """Of models in bfloat16 only the logits are rounded, nothing that is made of them."""
    batch = {"input_ids": torch.zeros(2, 3), "labels": torch.tensor([[3, 1, 0], [2, 2, 30]])}
    batch["attention_mask"] = torch.tensor([[1, 1, 1], [1, 1, 0]])
    values = []
    for precise in (False, True):
        models = [Fixed(x(s, 2, 3, 32).bfloat16()) for s in (7, 8, 9)]
        models = [model.double() if precise else model for model in models]
        tables, both = [hb.loss("kl", temperature=3), hb.loss("ce")], {"a": models[1], "b": models[2]}
        merge = {"by": by, "confidence": confidence}
        values.append(step(objective(models[0], both, tables, batch, merge=merge, **names), [batch])[0])
    assert torch.allclose(*values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("by", ["logits", "probabilities"])
@pytest.mark.parametrize("confidence", [None, "labels", "entropy"])
@pytest.mark.parametrize("causal", [None, True])
def test_micro_batches_and_padding(tagger, batches, objective, step, split, by, confidence, causal):
    (batch,) = batches([7, 1, 4, 2, 6, 3])
    student, a, b = (tagger(8, pooled=False) for _ in range(3))
    tables = [hb.loss("kl", temperature=3), hb.loss("ce", weight=0.3)]
    merge = {"by": by, "confidence": confidence, "weights": {"a": 2.0}}
    made = objective(student, {"a": a, "b": b}, tables, batch, merge=merge, labels="tags", causal=causal)
    means, slope = step(made, [batch])
    wider = {
        k: nn.functional.pad(v, (0, 4), value=-100 if k == "tags" else 0) if v.dim() == 2 else v
        for k, v in batch.items()
    }
    for other in (split(batch), [wider]):
        found, gradient = step(made, other)
        assert torch.allclose(found, means, rtol=0, atol=1e-6)
        assert torch.allclose(gradient, slope, rtol=0, atol=1e-6)
