"""The callback `evaluate` on soft labels: each counts as its likeliest class."""

from __future__ import annotations

import pytest
import torch

import hookbrew as hb
from hookbrew.errors import DataError


@pytest.fixture
def metrics(pack, tagger, batches):
    """The metrics of an untrained student, by what `change` makes of the labels."""

    def make(change, *, pooled):
        key = "labels" if pooled else "tags"
        data = batches([3, 2], [4, 1], [5, 2])
        data[0][key][0] = -100
        torch.manual_seed(0)
        student = tagger(8, pooled=pooled)
        optimizer = torch.optim.SGD(student.parameters(), 0.0)
        run = hb.Distillation(None, student, [hb.loss("ce")], labels=key, catalogue=pack)
        names = ["accuracy", "calibration_error", "loss", "f1"]
        changed = [{**batch, key: change(batch[key])} for batch in data]
        callbacks = [hb.callback("evaluate", metrics=names)]
        return run.fit(data, steps=1, optimizer=optimizer, evaluate=changed, callbacks=callbacks).metrics

    return make


def softened(labels, share=0.6):
    """This share for the label, the rest for the other two classes; zeros for -100."""
    rows = torch.full((*labels.shape, 3), (1 - share) / 2)
    rows = rows.scatter(-1, labels.clamp(min=0).unsqueeze(-1), share)
    return rows * (labels >= 0).unsqueeze(-1)


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_soft_labels_are_counted_as_their_likeliest_class(metrics, pooled, dtype):
    expected = metrics(lambda labels: labels, pooled=pooled)
    assert metrics(lambda labels: softened(labels).to(dtype), pooled=pooled) == expected


def test_classes_that_do_not_exclude_each_other_are_refused(metrics):
    with pytest.raises(DataError) as caught:
        metrics(lambda labels: softened(labels, share=1.0) + torch.tensor([0.0, 0.0, 1.0]), pooled=True)
    assert str(caught.value) == ("callback 'evaluate': a soft label sums to 2; expected 1, or 0 where there is none")


def test_one_number_for_each_sample_is_no_soft_label(metrics):
    with pytest.raises(DataError) as caught:
        metrics(lambda labels: softened(labels)[:, :2], pooled=True)
    assert str(caught.value) == (
        "callback 'evaluate': labels (2, 2) do not fit logits (2, 3); expected one label for each row"
    )
