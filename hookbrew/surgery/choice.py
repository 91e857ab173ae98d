"""Published choices of which layers of a teacher a student starts with, by name.

Of N layers k, counted from 0:

first       0, 1, .. k-1                      Sun et al. 2019 (Patient KD, 1908.09355, section 4.2); Sajjad et al. 2023
                                              (2004.03844): to drop the top layers costs least
last        N-k .. N-1                        the same study's other end
uniform     (i+1) N / k - 1                   Jiao et al. 2020 (TinyBERT, 1909.10351, section 4.1, g(m) = 3m of 12); the
                                              last layer is one of them
distilbert  i (N-1) / (k-1), rounded          Sanh et al. 2019: one of two, as their extract_distilbert.py takes them:
                                              0, 2, 4, 7, 9, 11 of 12; the first and the last are among them
minilm      i N / k                           every (N/k)-th from the first on, as the MiniLM of 6 layers was cut out of
                                              that of 12: "keeping only every second layer" (Reimers, sentence-
                                              transformers, model_distillation.py: 0, 2, 4, 6, 8, 10)
best        those that change their input     measured on batches (similar.py)
            most

Where k does not divide N, fractions are rounded down, but for distilbert.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from hookbrew import words
from hookbrew.errors import SurgeryError

CHOICES = ("first", "last", "uniform", "distilbert", "minilm", "best")
WRITTEN = re.compile(r"([A-Za-z]+):([0-9]+)")


def chosen(name: str, count: int, total: int) -> list[int]:
    """The numbers of `count` of `total` layers, by a name that needs no measuring."""
    if name == "first":
        return list(range(count))
    if name == "last":
        return list(range(total - count, total))
    if name == "uniform":
        return [(i + 1) * total // count - 1 for i in range(count)]
    if name == "minilm":
        return [i * total // count for i in range(count)]
    steps = max(1, count - 1)
    return [(2 * i * (total - 1) + steps) // (2 * steps) for i in range(count)]


def read(path: str, text: str, total: int) -> tuple[str, int]:
    """The name and the number in a choice like `uniform:3`; raises SurgeryError for what is none."""
    match = WRITTEN.fullmatch(text)
    if match is None:
        raise SurgeryError(f"keep: {text!r} for {path!r} is no choice of layers; write a list, or one like 'uniform:3'")
    name, count = match[1], int(match[2])
    if name not in CHOICES:
        raise SurgeryError(f"keep: no choice of layers is called {name!r}; {words.hint(name, CHOICES)}")
    if not 1 <= count <= total:
        raise SurgeryError(f"keep: {text!r} asks for {count} of the {total} layers of {path!r}")
    return name, count


def decided(
    model: nn.Module, path: str, wanted: Sequence[int] | str, total: int, batches: Iterable[Any] | None
) -> Sequence[int]:
    """The numbers of the layers that stay in a list of `total`; raises SurgeryError for a choice that is none.

    wanted: the numbers themselves, or a choice like `uniform:3`. batches: what `best` is measured on.
    """
    if not isinstance(wanted, str):
        return wanted
    name, count = read(path, wanted, total)
    if name != "best":
        return chosen(name, count, total)
    if batches is None:
        raise SurgeryError(f"keep: {wanted!r} is measured, and there are no batches: give batches=")
    from hookbrew.surgery.similar import best

    return best(model, path, count, batches)
