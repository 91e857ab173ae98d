"""What glibc's settings cost or save: the same step in processes of their own.

    python benchmarks/allocator.py [--rounds 3] [--steps 5] [--tiny] [--json FILE]

CPU time, page faults and the most memory of a process, for a step of distillation by hand: logits of 32 x 64 and of
32 x 256 tokens, and a vocabulary of 50,000 in whole.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from measure import machine, write
from models import bert
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional
from vocabulary import by_hand

from hookbrew import heap

LARGEST = str(1 << 32)
SETTINGS: dict[str, dict[str, str]] = {
    "as it is": {},
    "hookbrew run": {},
    "all kept": {"MALLOC_MMAP_THRESHOLD_": LARGEST, "MALLOC_TRIM_THRESHOLD_": LARGEST},
}
WARM = 3
Step = Callable[[], object]


def logits(rows: int, tokens: int) -> Step:
    """Cross-entropy with the teacher's probabilities and with labels, B x L tokens, BERT 12 x 256 to 3 x 128."""
    torch.manual_seed(0)
    student, teacher = bert(128, 3), bert(256, 12).eval()
    optimizer = torch.optim.AdamW(student.parameters(), 1e-4, fused=True)
    ids, labels = torch.randint(5000, (rows, tokens)), torch.randint(4, (rows,))

    def step() -> None:
        with torch.no_grad():
            theirs = teacher(ids).logits
        ours = student(ids).logits
        soft = functional.cross_entropy(ours / 4, (theirs / 4).softmax(-1)) * 16
        (soft + functional.cross_entropy(ours, labels)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def whole(rows: int, classes: int) -> Step:
    """Forward KL of all logits, (rows, classes), with gradients of hidden states and of the head."""
    torch.manual_seed(0)
    heads = [nn.Linear(width, classes, bias=False) for width in (128, 256)]
    hidden = [torch.randn(1, rows, head.in_features, requires_grad=head is heads[0]) for head in heads]

    def step() -> None:
        by_hand((hidden[0], heads[0].weight), (hidden[1], heads[1].weight)).backward()
        hidden[0].grad = heads[0].weight.grad = None

    return step


JOBS: dict[str, tuple[Callable[[int, int], Step], tuple[int, int], tuple[int, int]]] = {
    "logits, 32 x 64": (logits, (32, 64), (2, 8)),
    "logits, 32 x 256": (logits, (32, 256), (2, 16)),
    "50,000 classes, whole": (whole, (1024, 50000), (8, 100)),
}
"""What makes the step, its sizes, and those for a look."""


def measured(job: str, setting: str, *, steps: int, tiny: bool) -> dict[str, float]:
    """In this process: milliseconds of CPU time and page faults of a step, MiB at most."""
    if setting == "hookbrew run":
        heap.keep()
    make, large, small = JOBS[job]
    step = make(*(small if tiny else large))
    for _ in range(WARM):
        step()
    faults, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
    for _ in range(steps):
        step()
    taken, after = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "ms": 1000 * taken / steps,
        "faults": (after.ru_minflt - faults) / steps,
        "MiB": after.ru_maxrss / 1024,
    }


def elsewhere(job: str, setting: str, options: argparse.Namespace) -> dict[str, float]:
    """The same in a process of its own, whose allocator has these settings."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, __file__, "--one", job, setting, "--steps", str(options.steps)]
    command += ["--tiny"] if options.tiny else []
    done = subprocess.run(command, env=plain | SETTINGS[setting], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="glibc's settings beside each other")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="sizes that show nothing, to see that it runs")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--one", nargs=2, metavar=("JOB", "SETTING"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        torch.set_num_threads(1)
        print(json.dumps(measured(*options.one, steps=options.steps, tiny=options.tiny)))
        return
    table, results = Table("", *SETTINGS), dict[str, Any]()
    for job in JOBS:
        runs = [{setting: elsewhere(job, setting, options) for setting in SETTINGS} for _ in range(options.rounds)]
        results[job] = runs
        cells = []
        for setting in SETTINGS:
            middle = {name: median(run[setting][name] for run in runs) for name in ("ms", "faults", "MiB")}
            ratio = median(run[setting]["ms"] / run["as it is"]["ms"] for run in runs)
            told = f"{middle['ms']:.0f} ms ({ratio:.2f})\n{middle['faults']:,.0f} faults\n{middle['MiB']:,.0f} MiB"
            cells.append(told)
        table.add_row(job, *cells, end_section=True)
    Console().print(table)
    if options.json:
        write(options.json, {"machine": machine(torch.device("cpu")), "jobs": results})


if __name__ == "__main__":
    main()
