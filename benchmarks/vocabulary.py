"""What a big vocabulary costs: chunked losses from hidden states and heads beside the whole logits.

    python benchmarks/vocabulary.py [--rounds 12] [--rows 32,128,256] [--tiny] [--json FILE]

A step of forward KL on all tokens, from a GPT-2 of 4 layers of 256 to one of 2 layers of 128, 50,000 classes, 4 x 256
tokens, with fused AdamW; then whole trainings by `fit`, the look at the first batch and evaluation's taps included.
Before anything is timed, all variants must have computed the same loss and gradients, and all trainings the same
student; the peak of the tensors alive at once is counted, not measured.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from random import Random
from typing import Any

import torch
from loader import Clocked
from measure import Peak, Variant, machine, ratio, rounds, write
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

import hookbrew as hb
from hookbrew.objective import Side
from hookbrew_plugins.losses import kl
from hookbrew_plugins.losses.chunked import chunked
from hookbrew_plugins.losses.walk import Term

HAND, AGAIN, DENSE, CHUNKED = "by hand", "by hand again", "kl, dense", "kl, chunked"
FITS = {"by hand": None, "by hand again": None, "fit, whole logits": False, "fit, chunked": True}
"""Whole trainings by name: by hand, or `fit` with the key `chunked` of its training."""
STEPS = 5
"""Of a training; the first two are not timed."""
RATE = 1e-4
Loss = Callable[[Side, Side], Tensor]


def causal(width: int, layers: int, classes: int, length: int) -> GPT2LMHeadModel:
    """A GPT-2 with random weights, its head tied to its embedding, without dropout: all variants compute the same."""
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    sizes = {"n_embd": width, "n_layer": layers, "n_head": max(1, width // 32), "n_positions": length}
    return GPT2LMHeadModel(GPT2Config(vocab_size=classes, bos_token_id=0, eos_token_id=0, **sizes, **none))


def by_hand(student: Side, teacher: Side) -> Tensor:
    """KL as a loop by hand writes it."""
    log_q = functional.log_softmax(functional.linear(*student), dim=-1)
    with torch.no_grad():
        log_p = functional.log_softmax(functional.linear(*teacher), dim=-1)
    return functional.kl_div(log_q.flatten(0, 1), log_p.flatten(0, 1), reduction="batchmean", log_target=True)


def dense(student: Side, teacher: Side) -> Tensor:
    """Ours on the whole logits."""
    with torch.no_grad():
        theirs = functional.linear(*teacher)
    return kl(functional.linear(*student), theirs, temperature=1.0)


def walked(student: Side, teacher: Side, rows: int | None = None) -> Tensor:
    """Ours in chunks."""
    return chunked(student, teacher, [Term("kl")], rows=rows).total


def losses(rows: Sequence[int]) -> dict[str, Loss]:
    """The variants by name; rows: sizes of chunks to measure beside that of its own choice."""
    more = {f"kl, chunked, {size} rows": partial(walked, rows=size) for size in rows}
    return {HAND: by_hand, AGAIN: by_hand, DENSE: dense, CHUNKED: walked, **more}


class Bench:
    """Each variant has a student and an optimizer of its own, equal at the start."""

    def __init__(self, losses: dict[str, Loss], device: torch.device, *, tiny: bool) -> None:
        torch.manual_seed(0)
        classes, length, batch = (500, 16, 2) if tiny else (50_000, 256, 4)
        self.losses, self.device = losses, device
        self.teacher = causal(256, 4, classes, length).eval().to(device)
        self.student = causal(128, 2, classes, length).to(device)
        self.ids = torch.randint(classes, (batch, length), device=device)

    def sides(self, student: GPT2LMHeadModel) -> tuple[Side, Side]:
        """What goes into the heads, and these."""
        with torch.no_grad():
            theirs = self.teacher.transformer(self.ids)[0]
        ours = student.transformer(self.ids)[0]
        return Side(ours, student.lm_head.weight), Side(theirs, self.teacher.lm_head.weight)

    def step(self, loss: Loss, student: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """One."""
        loss(*self.sides(student)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def variant(self, loss: Loss) -> Callable[[], None]:
        """A step that has been made once, so that the optimizer has its moments."""
        student = deepcopy(self.student)
        call = partial(self.step, loss, student, torch.optim.AdamW(student.parameters(), RATE, fused=True))
        call()
        return call

    def check(self) -> None:
        """AssertionError where variants do not compute the same."""
        found = {}
        for name, loss in self.losses.items():
            total = loss(*self.sides(self.student))
            found[name] = (total, *torch.autograd.grad(total, self.student.parameters()))
        for name, one in found.items():
            for ours, theirs in zip(one, found[HAND], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: name + text)

    def peak(self, loss: Loss) -> tuple[int, int]:
        """Bytes alive at most during a step, beyond weights and moments, and those of the largest tensor."""
        student = deepcopy(self.student)
        optimizer = torch.optim.AdamW(student.parameters(), RATE, fused=True)
        self.step(loss, student, optimizer)
        moments = [value for state in optimizer.state.values() for value in state.values()]
        before = [*student.parameters(), *student.buffers(), *self.teacher.parameters(), *self.teacher.buffers()]
        with Peak(*before, *moments, self.ids) as seen:
            self.step(loss, student, optimizer)
        return seen.most, seen.largest

    def train(self, chunked: bool | None, steps: int = STEPS) -> tuple[nn.Module, Clocked]:
        """A training by `fit`, or by hand for None: its student, and the times of its steps."""
        student, loader = deepcopy(self.student), Clocked([{"input_ids": self.ids}], steps)
        optimizer = torch.optim.AdamW(student.parameters(), RATE, fused=True)
        if chunked is None:
            for _ in loader:
                self.step(by_hand, student, optimizer)
        else:
            run = hb.Distillation(self.teacher, student, [hb.loss("kl", temperature=1)])
            run.fit(loader, steps=steps, optimizer=optimizer, chunked=chunked, log_every=1000)
        return student, loader

    def check_trainings(self) -> None:
        """AssertionError where trainings do not come to the same student."""
        students = [self.train(chunked, 3)[0] for chunked in dict.fromkeys(FITS.values())]
        for student in students[1:]:
            for ours, theirs in zip(student.parameters(), students[0].parameters(), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=RATE / 10)

    def peak_of_training(self, chunked: bool | None) -> tuple[int, int]:
        """Bytes alive at most during a training, beyond weights and moments, and those of the largest tensor."""
        before = [*self.student.parameters(), *self.teacher.parameters(), *self.teacher.buffers(), self.ids]
        own = sum(parameter.nbytes for parameter in self.student.parameters())
        with Peak(*before) as seen:
            self.train(chunked, 3)
        return seen.most - 3 * own, seen.largest


def trainings(bench: Bench, count: int) -> dict[str, Any]:
    """All trainings: seconds a step, in rounds of which each has an order of its own."""
    draw, times = Random(0), {name: list[float]() for name in FITS}
    for _ in range(count):
        for name in draw.sample([*FITS], len(FITS)):
            times[name].append(bench.train(FITS[name])[1]())
    report: dict[str, Any] = {}
    for name, wanted in FITS.items():
        most, largest = bench.peak_of_training(wanted)
        report[name] = ratio(times[name], times[HAND])._asdict() | {"peak": most, "largest": largest}
    return report


def measured(bench: Bench, count: int) -> dict[str, Any]:
    """All variants."""
    times = rounds({name: Variant(bench.variant(loss)) for name, loss in bench.losses.items()}, count, bench.device)
    report: dict[str, Any] = {}
    for name, loss in bench.losses.items():
        most, largest = bench.peak(loss)
        report[name] = ratio(times[name], times[HAND])._asdict() | {"peak": most, "largest": largest}
    return report


def show(console: Console, title: str, report: dict[str, Any]) -> None:
    """The figures."""
    table = Table("a step", "ms", "min", "median", "95 %", "peak, MiB", "of by hand", "largest, MiB", title=title)
    for name, line in report.items():
        table.add_row(
            name,
            f"{line['milliseconds']:.0f}",
            f"{line['fastest']:.3f}",
            f"{line['middle']:.3f}",
            f"{line['low']:.3f}..{line['high']:.3f}",
            f"{line['peak'] / 2**20:.1f}",
            f"{line['peak'] / report[HAND]['peak']:.2f}",
            f"{line['largest'] / 2**20:.1f}",
        )
    console.print(table)


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--rows", type=lambda text: [int(one) for one in text.split(",")], default=[])
    parser.add_argument("--tiny", action="store_true", help="500 classes, 2 x 16 tokens")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Check, measure, print, write."""
    given = options(argv)
    torch.set_num_threads(1)
    bench = Bench(losses(given.rows), given.device, tiny=given.tiny)
    bench.check()
    bench.check_trainings()
    settings = {key: value for key, value in os.environ.items() if key.startswith(("MALLOC_", "GLIBC_"))}
    report = {"machine": machine(given.device), "allocator": settings, "steps": measured(bench, given.rounds)}
    report["trainings"] = trainings(bench, given.rounds)
    classes, (batch, length) = bench.student.config.vocab_size, bench.ids.shape
    title = f"{classes} classes, {batch} x {length} tokens; {given.rounds} rounds; allocator {settings or 'as it is'}"
    console = Console(width=None if sys.stdout.isatty() else 130)
    show(console, title, report["steps"])
    show(console, f"whole trainings of {STEPS} steps", report["trainings"])
    write(given.json, report)


if __name__ == "__main__":
    main()
