"""What a step costs with others and with us, beside a loop written by hand: the same models, batches and loss.

    python benchmarks/peers.py [--rounds 7] [--jobs logits,matches] [--device cuda] [--teacher bf16] [--folder DIR]
    python benchmarks/peers.py --read ONE.json TWO.json --folder DIR      # measures nothing: puts earlier runs together

Before anything is timed, all must compute the same losses, step by step. Toolkits that are not installed are left out,
and said so.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import ours
import torch
from chart import markdown, plot, show
from loader import quiet
from measure import Peak, machine, ratio, verdict, write
from rich.console import Console
from side import Side, by_hand, sided
from toolkits import PEERS
from work import WORKS, Work

HAND, AGAIN, FUSED, ASKED = "by hand", "by hand again", "by hand, fused AdamW", "by hand, output_hidden_states"
FIT = "hookbrew"
LOWERED = {kind: f"hookbrew, teacher in {kind}" for kind in ours.KINDS}
PLAIN = ", AdamW not fused"
"""After the name of a toolkit: with the optimizer as torch has it when nothing is said."""
CLOSE = dict.fromkeys(LOWERED.values(), 0.02)
"""How far the losses of one may be from those by hand, if not 1e-4."""
Maker = Callable[[Side], Callable[[], None]]


def makers(name: str, lower: Sequence[str] = ()) -> dict[str, Maker]:
    """Everybody who can do a job, by name; lower: with the teacher in bf16 or fp16, too."""
    work = WORKS[name]
    found: dict[str, Maker] = {HAND: by_hand, AGAIN: by_hand, FUSED: by_hand}
    if work.asked:
        found[ASKED] = partial(by_hand, asked=True)
    found[FIT] = ours.train
    if work.lower:
        found |= {LOWERED[kind]: partial(ours.lowered, kind=kind) for kind in lower}
    able = {title: peer for title, peer in PEERS.items() if name not in peer.lacks and peer.missing is None}
    found |= {title: peer.train for title, peer in able.items()}
    if work.updates:
        found |= {title + PLAIN: peer.train for title, peer in able.items() if not peer.fused}
    return found


class Bench:
    """One job, and everybody who does it."""

    def __init__(self, name: str, work: Work, device: torch.device, *, lower: Sequence[str] = ()) -> None:
        self.work, self.device, self.makers = work, device, makers(name, lower)
        self.each = self.sides()

    def sides(self) -> dict[str, tuple[Side, Callable[[], None]]]:
        """New ones; hookbrew's models keep the attention that they came with."""
        found = {}
        for name, make in self.makers.items():
            side = sided(self.work, self.device, eager=not name.startswith(FIT))
            side.fused = name not in (HAND, AGAIN, ASKED) and not name.endswith(PLAIN)
            found[name] = side, make(side)
        return found

    def check(self) -> dict[str, float]:
        """Raise AssertionError unless all compute the same losses; how far each lies from the loop by hand, at most."""
        losses = {}
        for name, (side, train) in self.each.items():
            side.losses.clear()
            train()
            losses[name] = torch.stack(side.losses).float()
        away = {name: float((found / losses[HAND] - 1).abs().max()) for name, found in losses.items()}
        wrong = {name: far for name, far in away.items() if not far < CLOSE.get(name, 1e-4)}
        assert not wrong, f"not the same loss: {wrong}"
        return away

    def peaks(self) -> dict[str, int]:
        """The bytes of tensors that each has alive at most in a step, beyond weights, moments and batches."""
        return {name: peak(side, train) for name, (side, train) in self.each.items()}

    def times(self, rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
        """Seconds a step, a number for each round, and those of the fastest step.

        In each round another one begins, and every other round goes backwards.
        """
        names, times = [*self.each], {name: list[float]() for name in self.each}
        least = dict.fromkeys(self.each, math.inf)
        for number in range(rounds):
            first = number * 3 % len(names)
            order = [*names[first:], *names[:first]]
            for name in order if number % 2 else reversed(order):
                side, train = self.each[name]
                side.losses.clear()
                gc.collect()
                train()
                times[name].append(side.loader())
                least[name] = min(least[name], side.loader.least())
        return times, least


def peak(side: Side, train: Callable[[], None]) -> int:
    """The most bytes alive in the steps of a call after the first, beyond what was there before it."""
    device = side.loader.device
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        side.loader.seen = lambda step: torch.cuda.reset_peak_memory_stats(device) if step == 1 else None
        train()
        side.loader.seen = quiet
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()
    there = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    with Peak(*there) as seen:

        def start(step: int) -> None:
            if step == 1:
                seen.most = 0

        side.loader.seen = start
        train()
    side.loader.seen = quiet
    return seen.most


def measured(bench: Bench, rounds: int) -> dict[str, Any]:
    """The lines of one job."""
    work = bench.work
    report: dict[str, Any] = {"title": work.title, "target": work.target, "most": work.peak, "lower": work.lower}
    report |= {"rounds": rounds, "steps": work.steps, "away": bench.check(), "lines": {}}
    peaks = bench.peaks()
    times, least = bench.times(rounds)
    for name, each in times.items():
        found = ratio(each, times[HAND])._replace(fastest=least[name] / least[HAND])
        line = found._asdict() | {"seconds": each, "peak": peaks[name], "memory": peaks[name] / peaks[HAND]}
        goal = work.target if name == FIT else work.lower if name in LOWERED.values() else None
        if goal is not None:
            line |= {"target": goal, "verdict": verdict(found, 0.0, goal)}
        report["lines"][name] = line
    return report


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--jobs", type=lambda text: text.split(","), default=[*WORKS], help=",".join(WORKS))
    lower = {"nargs": "+", "choices": [*ours.KINDS], "default": []}
    parser.add_argument("--teacher", **lower, help="ours once more with a teacher in each of these")
    parser.add_argument("--tiny", action="store_true", help="2 x 8 tokens: to see that it works")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--read", nargs="+", metavar="JSON", help="measure nothing; put earlier runs together")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="for peers.json, peers.md and peers.png")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE.png")
    parser.add_argument("--table", metavar="FILE.md")
    given = parser.parse_args(argv)
    if given.folder:
        given.folder.mkdir(parents=True, exist_ok=True)
        for key, end in {"json": "json", "plot": "png", "table": "md"}.items():
            setattr(given, key, getattr(given, key) or str(given.folder / f"peers.{end}"))
    return given


def versions(console: Console) -> dict[str, str]:
    """Of the toolkits that are there; says which are not."""
    for name, peer in PEERS.items():
        if peer.missing:
            console.print(f"{name} is left out: {peer.missing} is not installed")
    return {name: peer.version for name, peer in PEERS.items() if not peer.missing}


def run(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Check and measure."""
    report: dict[str, Any] = {"machine": machine(given.device), "toolkits": versions(console), "jobs": {}}
    for name in given.jobs:
        work = WORKS[name]
        if given.tiny:
            work = attrs.evolve(work, size=(2, 8 if name != "tiny" else work.size[1]), steps=4)
        report["jobs"][name] = measured(Bench(name, work, given.device, lower=given.teacher), given.rounds)
        show(console, report["jobs"][name])
        gc.collect()
        write(given.json, report)  # after each, since all take long
    return report


def main(argv: Sequence[str] | None = None) -> None:
    """Check, measure, print, write."""
    given = options(argv)
    torch.set_num_threads(1)
    for name in ("hookbrew", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning)
    console = Console(width=None if sys.stdout.isatty() else 130)
    if given.read:
        reports = [json.loads(Path(path).read_text(encoding="utf-8")) for path in given.read]
        jobs = {name: job for one in reports for name, job in one["jobs"].items()}
        report = reports[0] | {"jobs": {name: jobs[name] for name in WORKS if name in jobs}}
        write(given.json, report)
    else:
        report = run(given, console)
    if given.table:
        Path(given.table).write_text(markdown(report), encoding="utf-8")
    if given.plot:
        plot(given.plot, report)


if __name__ == "__main__":
    main()
