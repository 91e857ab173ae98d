"""The jobs of work.py done by hookbrew."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from loader import Clocked
from side import Side, adamw
from torch import Tensor

import hookbrew as hb

KINDS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Rows:
    """Keeps the loss of each step."""

    def __init__(self, kept: list[Tensor]) -> None:
        self._kept = kept

    def step_end(self, state: hb.State) -> None:
        """One more."""
        assert state.loss is not None
        self._kept.append(state.loss.detach())


def distillation(side: Side) -> hb.Distillation:
    """What is trained; where logits were stored, with the teacher that gave them."""
    teacher = side.work.storing().to(side.loader.device) if side.work.storing else side.teacher
    return hb.Distillation(teacher, side.student, side.work.losses())


def train(side: Side) -> Callable[[], None]:
    """With rows of metrics in a file and with progress, and with the projections that the others have.

    Where logits were stored, they are in the cache before anything is timed, and each step finds them there.
    """
    run, options = distillation(side), {"epochs": 1, "log_every": 20, "precision": "fp32"}
    optimizer, folder = adamw(side.student.parameters()), TemporaryDirectory()
    kept = {"folder": Path(folder.name) / "kept"} if side.work.storing else None
    if side.projections or kept:
        still, every = torch.optim.SGD(side.student.parameters(), 0.0), side.loader.batches
        run.fit(Clocked(every, len(every), side.loader.device), optimizer=still, cache=kept, **options)
        made = [module for name, module in run.objective.extras.items() if "Linear" in type(module).__name__]
        for own, given in zip(made, side.projections, strict=True):
            own.load_state_dict(given.state_dict())
    numbers, there = count(), kept and {**kept, "missing": "refuse"}

    def fit() -> None:
        callbacks: list[Any] = [Rows(side.losses), hb.callback("metrics"), hb.callback("progress")]
        output = Path(folder.name) / str(next(numbers))
        with redirect_stderr(StringIO()):  # else a terminal's own speed is measured
            run.fit(side.loader, optimizer=optimizer, callbacks=callbacks, output=output, cache=there, **options)

    return fit


def lowered(side: Side, kind: str) -> Callable[[], None]:
    """With the teacher in fewer bits, to which its caller casts it."""
    side.teacher.to(KINDS[kind])
    return train(side)
