"""What two runs left: equal bytes, equal rows."""

import json

import torch

PARTS = ("student.safetensors", "extras.safetensors", "optimizer.pt", "train.pt")


def end(output):
    """All of the last checkpoint by name, and the rows of metrics but for what the clock says."""
    newest = max((output / "checkpoints").glob("step-*"))
    remembered = torch.load(newest / "callbacks.pt", weights_only=True)
    assert remembered.pop("metrics")["bytes"] <= (output / "metrics.jsonl").stat().st_size
    return newest.name, {part: (newest / part).read_bytes() for part in PARTS}, [*rows(output), remembered]


def rows(output):
    """The rows of metrics but for what the clock says."""
    found = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "samples_per_second"} for row in found]


def require_equal(found, expected):
    """Every byte, and every row."""
    assert found[0] == expected[0]
    assert found[2] == expected[2]
    for part in PARTS:
        assert found[1][part] == expected[1][part], part
