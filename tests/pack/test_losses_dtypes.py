"""Every loss in float32, bfloat16 and float16 is the one in float64, whose formulas have tests of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import hookbrew_plugins
from hookbrew.plugin import catalogue
from hookbrew.testing.trial import trials
from hookbrew_plugins.losses.simkd import SimKD

PACK = catalogue(discover=False, plugins=[hookbrew_plugins])
NEEDED = {"crd": {"samples": 12}}
"""Values for the options that have no default."""

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""How far a gradient may be off, relative to its largest entry: it has the dtype of the student, and is rounded."""


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("name", PACK.names("losses"))
def test_values_and_gradients_are_those_of_float64(name, dtype):
    for trial in trials(PACK.load("losses", name)(**NEEDED.get(name, {}))):
        for masked in (False, True):
            given = trial.inputs(dtype) | ({"mask": trial.mask()} if masked else {})
            exact = {role: x.double() if x.is_floating_point() else x for role, x in given.items()}
            value, expected = trial.value(given), trial.double().value(exact)
            assert value.dtype == torch.float32
            assert value.item() == pytest.approx(expected.item(), rel=1e-5)
            slope, wanted = trial.gradient(given).double(), trial.double().gradient(exact)
            assert (slope - wanted).abs().max() <= ROUNDING[dtype] * wanted.abs().max()


@pytest.mark.parametrize("mask", [None, torch.tensor([[True, False, True], [False, True, True]])])
def test_simkd_by_hand(mask):
    """Its projector in NumPy: linear, layer norm and ReLU twice, and a last linear; then the squared error."""
    loss = SimKD().build()
    student, teacher = (torch.randn(2, 3, d, generator=torch.Generator().manual_seed(d)) for d in (6, 8))
    loss(student, teacher)
    loss.double()
    first, norm, _, second, other, _, last = (
        [p.detach().numpy() for p in part.parameters()] for part in loss.projector
    )
    x, t = student.double().numpy(), teacher.double().numpy()
    for (weight, bias), (scale, shift) in ((first, norm), (second, other)):
        x = x @ weight.T + bias
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + shift
        x = np.maximum(x, 0)
    error = (x @ last[0].T + last[1] - t) ** 2
    expected = error.mean() if mask is None else error[mask.numpy()].mean()
    assert loss(student.double(), teacher.double(), mask).item() == pytest.approx(expected, rel=1e-12)
