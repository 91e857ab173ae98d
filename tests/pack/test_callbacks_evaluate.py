"""The callback `evaluate`: means over whole data sets, exact samples, several logits, tasks, against plain loops."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hookbrew as hb
from hookbrew.errors import DataError
from hookbrew_plugins.callbacks.evaluate import Evaluate


class Given(nn.Module):
    """Its logits are those of the batch, plus nothing that can be learned."""

    def __init__(self):
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))

    def forward(self, scores, more=None):
        return {"scores": scores + self.zero, "more": None if more is None else more + self.zero}


@pytest.fixture
def evaluated(pack):
    """The metrics of batches of logits and labels."""

    def make(data, metrics, **names):
        student = Given()
        names = {"logits": ":out.scores", **names}
        losses = [hb.loss("kd_mse", student=":out.scores", teacher=":out.scores")]
        run = hb.Distillation(Given(), student, losses, catalogue=pack, **names)
        bare = [{k: v for k, v in data[0].items() if k in ("scores", "more")}]
        frozen = torch.optim.SGD(student.parameters(), 0.0)
        callback = hb.callback("evaluate", metrics=metrics)
        return run.fit(bare, steps=1, optimizer=frozen, evaluate=data, callbacks=[callback]).metrics

    return make


def drawn(*shapes, classes=4, seed=0):
    """Batches of these shapes, (B,) or (B, L), of which some labels are -100."""
    generator = torch.Generator().manual_seed(seed)
    data = []
    for shape in shapes:
        labels = torch.randint(-1, classes, shape, generator=generator)
        scores = torch.randn(*shape, classes, generator=generator)
        hit = torch.rand(shape, generator=generator) < 0.6
        scores.scatter_add_(-1, labels.clamp(min=0).unsqueeze(-1), 9.0 * hit.float().unsqueeze(-1))
        data.append({"scores": scores, "labels": labels.where(labels >= 0, torch.tensor(-100))})
    return data


@pytest.mark.parametrize("shapes", [((5,), (1,), (7,)), ((5, 3), (1, 6), (4, 2))])
def test_against_a_loop(evaluated, shapes):
    data = drawn(*shapes)
    data[1]["labels"][:] = -100  # a batch without any
    right, exact, loss, hits, told, true = [], [], [], [0] * 4, [0] * 4, [0] * 4
    for batch in data:
        for scores, labels in zip(batch["scores"].double(), batch["labels"], strict=True):
            rows = list(zip(scores.reshape(-1, 4), labels.reshape(-1).tolist(), strict=True))
            known = [(row, label) for row, label in rows if label != -100]
            for row, label in known:
                best = int(row.argmax())
                right.append(best == label)
                loss.append(-float(row.log_softmax(0)[label]))
                told[best], true[label], hits[label] = told[best] + 1, true[label] + 1, hits[label] + (best == label)
            exact += [all(int(row.argmax()) == label for row, label in known)] if known else []
    found = evaluated(data, ["accuracy", "exact", "loss", "precision", "recall", "f1"])
    assert 0 < sum(exact) < len(exact)
    assert found == {
        "accuracy": pytest.approx(sum(right) / len(right)),
        "exact": pytest.approx(sum(exact) / len(exact)),
        "loss": pytest.approx(sum(loss) / len(loss), abs=1e-6),
        "precision": pytest.approx(sum(h / max(1, t) for h, t in zip(hits, told, strict=True)) / 4),
        "recall": pytest.approx(sum(h / max(1, t) for h, t in zip(hits, true, strict=True)) / 4),
        "f1": pytest.approx(sum(2 * h / max(1, a + b) for h, a, b in zip(hits, told, true, strict=True)) / 4),
    }


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 9))
def test_batches_do_not_matter(sizes, seed):
    """Law: the numbers of several batches are those of one."""
    parts = drawn(*[(size, 3) for size in sizes], seed=seed)
    whole = [{k: torch.cat([part[k] for part in parts]) for k in ("scores", "labels")}]
    assert counted(parts) == pytest.approx(counted(whole), abs=1e-6, nan_ok=True)


class State:
    """What the callback reads of a state."""

    def __init__(self):
        self.task, self.metrics, self.batch = None, {}, {}


def counted(data, metrics=("accuracy", "exact", "loss")):
    counter, state = Evaluate(metrics=list(metrics)).build(), State()
    counter.eval_start(state)
    for batch in data:
        state.logits, state.labels = batch["scores"], batch["labels"]
        counter.eval_batch_end(state)
    counter.eval_end(state)
    return state.metrics


def test_several_logits_count_alike(evaluated):
    """A sample is exact if all of its labels, of all logits, are met."""
    one, two = drawn((6,), (5,)), drawn((6,), (5,), seed=1)
    data = [
        {"scores": a["scores"], "starts": a["labels"], "more": b["scores"], "ends": b["labels"]}
        for a, b in zip(one, two, strict=True)
    ]
    names = {"logits": [":out.scores", ":out.more"], "labels": ["starts", "ends"]}
    found = evaluated(data, ["accuracy", "exact", "loss", "f1"], **names)
    flat = [
        {"scores": torch.cat([a["scores"], b["scores"]]), "labels": torch.cat([a["labels"], b["labels"]])}
        for a, b in zip(one, two, strict=True)
    ]
    single = counted(flat, ["accuracy", "loss", "f1"])
    assert {k: found[k] for k in single} == pytest.approx(single, abs=1e-6)
    exact = []
    for batch in data:
        for row in range(len(batch["starts"])):
            pairs = [(batch["scores"], batch["starts"]), (batch["more"], batch["ends"])]
            met = [bool(s[row].argmax() == t[row]) for s, t in pairs if t[row] != -100]
            exact += [all(met)] if met else []
    assert found["exact"] == pytest.approx(sum(exact) / len(exact))
    assert found["exact"] < found["accuracy"]


@pytest.mark.parametrize("shapes", [((4,), (6,)), ((4, 3), (2, 5))])
def test_exact_samples_with_soft_labels(evaluated, shapes):
    """A batch has as many samples as there are classes, as one that compared both by mistake would need."""
    data = drawn(*shapes)
    soft = [
        {
            "scores": batch["scores"],
            "labels": (nn.functional.one_hot(batch["labels"].clamp(min=0), 4) * 0.6 + 0.1)
            * (batch["labels"] >= 0).unsqueeze(-1),
        }
        for batch in data
    ]
    assert evaluated(soft, ["exact", "accuracy"]) == evaluated(data, ["exact", "accuracy"])


def test_labels_at_padding_do_not_count(evaluated):
    """Where data say no -100, the mask does."""
    (batch,) = drawn((4, 5))
    mask = torch.arange(5)[None] < torch.tensor([[5], [2], [3], [1]])
    data = [{**batch, "attention_mask": mask.long()}]
    marked = [{**batch, "labels": batch["labels"].masked_fill(~mask, -100)}]
    names = ["accuracy", "exact", "loss"]
    assert evaluated(data, names) == evaluated(marked, names) != evaluated([batch], names)


def test_a_loss_that_is_nan_is_seen(evaluated):
    data = drawn((3,), (4,))
    data[1]["scores"][0, 0] = torch.nan
    data[1]["labels"][0] = 1
    found = evaluated(data, ["loss", "accuracy"])
    assert found["loss"] != found["loss"]
    assert found["accuracy"] == found["accuracy"]


def test_numbers_of_classes_that_vary(evaluated):
    """As where each token is one: a mean does not mind, what is of classes is refused."""
    data = [*drawn((3,), classes=4), *drawn((3,), classes=6)]
    assert set(evaluated(data, ["accuracy", "exact", "loss"])) == {"accuracy", "exact", "loss"}
    with pytest.raises(DataError) as caught:
        evaluated(data, ["f1"])
    assert str(caught.value) == (
        "callback 'evaluate': 'f1' is of classes, and logits have 6 of them after 4; where their number varies there "
        "is accuracy, exact, loss"
    )


def test_several_tasks_are_counted_apart(tagger, batches, pack):
    data = dict(zip(("trec", "sst"), batches([3, 2, 4], [5, 1]), strict=True))
    student = tagger(8)
    tasks = {name: hb.Task(losses=[hb.loss("ce")]) for name in data}
    run = hb.Distillation(None, student, tasks=tasks, catalogue=pack)
    frozen = torch.optim.SGD(student.parameters(), 0.0)
    feeds = {name: [batch] for name, batch in data.items()}
    callback = hb.callback("evaluate", metrics=["accuracy", "exact"])
    found = run.fit(feeds, steps=1, optimizer=frozen, evaluate=feeds, callbacks=[callback]).metrics
    right = {
        name: (student(b["input_ids"], b["attention_mask"]).argmax(-1) == b["labels"]).float().mean().item()
        for name, b in data.items()
    }
    assert found == pytest.approx({f"{name}/{m}": right[name] for name in data for m in ("accuracy", "exact")})


def test_means_do_not_wait_for_torchmetrics(evaluated, monkeypatch):
    """Most runs count nothing else, and its import takes seconds."""
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    data = drawn((3,), (4,))
    assert 0 < evaluated(data, ["accuracy", "exact", "loss"])["accuracy"] < 1
    with pytest.raises(ImportError):
        evaluated(data, ["f1"])


def test_not_one_label(evaluated):
    """Nothing was counted, and no number is made up."""
    data = drawn((3,))
    data[0]["labels"][:] = -100
    found = evaluated(data, ["accuracy", "exact", "f1"])
    assert [*found] == ["accuracy", "exact", "f1"]
    assert all(number != number for number in found.values())


def test_no_labels(evaluated):
    data = drawn((3,))
    del data[0]["labels"]
    with pytest.raises(DataError) as caught:
        evaluated(data, ["accuracy"])
    assert str(caught.value) == "callback 'evaluate' needs labels in the evaluation data; the batch has ['scores']"
