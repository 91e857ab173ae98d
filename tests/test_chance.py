"""Random states come back exactly, through a file."""

import io
import random

import numpy as np
import torch

from hookbrew.chance import randomness, restore

CPU = torch.device("cpu")


def drawn():
    return random.random(), random.gauss(0, 1), float(np.random.rand()), float(np.random.randn()), torch.rand(1).item()


def test_all_states_come_back():
    random.gauss(0, 1)  # Python and NumPy keep a second normal number for the next call
    np.random.randn()
    file = io.BytesIO()
    torch.save(randomness(CPU), file)
    expected = [drawn() for _ in range(3)]
    file.seek(0)
    restore(torch.load(file, weights_only=True), CPU)
    assert [drawn() for _ in range(3)] == expected
