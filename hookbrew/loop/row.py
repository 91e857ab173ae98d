"""The row of metrics: means since the last row, and the numbers in force."""

from __future__ import annotations

import math

from hookbrew.errors import NonFiniteError
from hookbrew.loop.state import State
from hookbrew.loop.training import Training

MOST = 10
"""So many updates left out one after the other end a training: it does not move any more."""


def row(loop: Training) -> dict[str, float]:
    """The row of this step."""
    state, objective = loop.state, loop.objective
    weights = zip(objective.terms, objective.weights(state.progress), strict=True)
    return {
        "step": state.step,
        "epoch": state.epoch,
        **loop.meter.row(state.ranks.total),
        **{f"weight/{term.name}": weight for term, weight in weights},
        **objective.varying(state.progress),
        "lr": float(loop.rate.current),
        **{name: float(rate) for name, rate in loop.rate.own.items()},
    }


def require_finite(state: State, skipping: bool) -> None:
    """Raise NonFiniteError for a row with a step that was not finite, or after too many that were left out."""
    if skipping:
        if state.record["streak"] >= MOST:
            most = f"the last {state.record['streak']:.0f} updates were left out, none was finite"
            raise NonFiniteError(f"step {state.step}: {most}; a smaller lr, clip_grad_norm or fp32 often helps")
    elif not math.isfinite(state.record["loss"] + state.record["grad_norm"]):
        raise NonFiniteError(f"a loss or gradient was not finite in the steps up to {state.step}")
