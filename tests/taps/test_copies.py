"""Copies and pickles of a model whose attention is tapped."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch

from hookbrew.taps import tap


def reloaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("text", ["attention[0]", "hidden[1]"])
def test_a_copy_does_not_keep_tensors_alive(transformer, text):
    model, batch = transformer("bert")
    gc.collect()
    gc.disable()
    try:
        with tap(model, a=text) as taps:
            taps.run(**batch)
            other = copy.deepcopy(model)
        alive = weakref.ref(taps["a"])
        del taps
        assert alive() is None
    finally:
        gc.enable()
    assert other(**batch).logits.shape == (2, 3)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, reloaded, lambda m: pickle.loads(pickle.dumps(m)), copy.copy])
def test_copies_are_inert(transformer, duplicate):
    model, batch = transformer("bert")
    with tap(model, a="attention[0]") as taps:
        out = taps.run(**batch).logits
        seen = taps["a"]
        other = duplicate(model)
        if duplicate is copy.copy:
            other = copy.copy(model.bert.encoder.layer[0].attention.self)
            other(torch.zeros(2, 7, 16))
        else:
            assert torch.equal(other(**batch).logits, out)
            with tap(other, a="attention[0]") as theirs:
                theirs.run(**batch)
            assert torch.equal(theirs["a"], seen)
        assert taps["a"] is seen
        assert torch.overrides._get_current_function_mode_stack() == []
