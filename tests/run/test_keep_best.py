"""Checkpoints of the best evaluations: the same stay, however often the run was stopped."""

import json

import pytest
import torch

from hookbrew.errors import PreemptedError
from hookbrew.run import resume, run
from hookbrew.store import Store, opened

SETS = ["train.epochs=5", "train.evaluate_every=2", "optimizer.lr=0.3"]
KEEPER = "{type='checkpoint', every=3, keep_best=2, metric='loss', goal='%s'}, {type='evaluate', metrics=['loss']}"


@pytest.mark.parametrize(
    ("goal", "strikes"),
    [("lowest", [4]), ("lowest", [6, 7, 18]), ("lowest", [9, 12, 24]), ("highest", [2]), ("highest", [4, 5])],
)
def test_a_resume_keeps_what_one_piece_would(toy, known, goal, strikes):
    def callbacks(at):
        return f"callbacks=[{{type='strike', at={at}}}, {KEEPER % goal}]"

    run("toy.toml", [*SETS, callbacks([]), "output=runs/whole"], catalogue=known, quiet=True)
    for place in range(len(strikes) + 1):
        try:
            if place == 0:
                run("toy.toml", [*SETS, callbacks(strikes), "output=runs/parts"], catalogue=known, quiet=True)
            else:
                resume("runs/parts", catalogue=known, quiet=True, require="exact")
        except PreemptedError:
            assert place < len(strikes)
    rows = [json.loads(line) for line in (toy / "runs/whole/metrics.jsonl").read_text().splitlines()]
    sign = 1 if goal == "lowest" else -1
    judged = sorted((sign * row["eval/loss"], row["step"]) for row in rows if "eval/loss" in row)
    best = {step for _, step in judged[:2]}
    assert best < {*stands(toy / "runs/whole")}
    assert best - {27, 30}, "one of the best is not kept as one of the newest"
    assert best <= {*stands(toy / "runs/parts")}
    assert remembered(toy / "runs/parts") == remembered(toy / "runs/whole")


def remembered(folder):
    newest = opened(Store(folder / "checkpoints").place(max(stands(folder))))
    return torch.load(newest.folder / "callbacks.pt", weights_only=True)["checkpoint"]


def stands(folder):
    """The steps of all checkpoints, each of which is whole."""
    store = Store(folder / "checkpoints")
    return [opened(store.place(step)).step for step in sorted(store.steps())]
