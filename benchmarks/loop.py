"""What the loop costs a step: `fit` beside a loop written by hand that does the same work.

    python benchmarks/loop.py [--rounds 15] [--shapes tiny,real] [--json FILE]

A teacher and a student, the losses kd_ce and ce, fused AdamW, the norm of the gradients, no update by what is not
finite, a row of means of each loss every few steps. Before anything is timed, both loops must have computed the same
losses and the same weights, and the operations of torch that each makes are counted.
"""

from __future__ import annotations

import argparse
import gc
import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from copy import deepcopy
from io import StringIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import torch
from loader import Clocked
from measure import Operations, Ratio, machine, ratio, verdict, write
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

import hookbrew as hb

HAND, AGAIN, FIT, WHOLE = "by hand", "by hand again", "fit", "fit, metrics and progress"
TEMPERATURE, RATE, EVERY = 4.0, 1e-4, 20
MICROSECONDS = {"tiny": 60.0}
"""At most so much above the loop by hand, by shape, on the machine that this was said of."""
YARDSTICK = 26.0
"""The microseconds that `yardstick` takes on that machine: on one that is slower, all else may take longer, too."""
RATIOS = {"real": 1.02}
Batch = dict[str, Tensor]


class Tiny(nn.Module):
    """The mean of some embeddings, (B, L) to logits (B, C): a step is nearly all overhead, torch's too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(100, width), nn.Linear(width, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits."""
        weights = attention_mask.unsqueeze(-1)
        found: Tensor = self.head((self.embed(input_ids) * weights).sum(1) / weights.sum(1))
        return found


def bert(width: int, layers: int) -> nn.Module:
    """A BERT with random weights, without dropout: two loops must compute the same."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 32}
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=2000, intermediate_size=4 * width, num_labels=4, **sizes, **none)
    return BertForSequenceClassification(config)


@attrs.frozen
class Shape:
    """Sizes of one comparison, and how many steps a round has."""

    teacher: nn.Module
    student: nn.Module
    batch: tuple[int, int]
    """(B, L)."""
    steps: int
    title: str

    def batches(self, device: torch.device) -> list[Batch]:
        """Four batches, padded, with lengths from half to all of the tokens."""
        generator = torch.Generator().manual_seed(0)
        made = []
        for _ in range(4):
            ids = torch.randint(100, self.batch, generator=generator)
            lengths = torch.randint(self.batch[1] // 2, self.batch[1] + 1, (self.batch[0], 1), generator=generator)
            mask = (torch.arange(self.batch[1]) < lengths).long()
            labels = torch.randint(4, self.batch[:1], generator=generator)
            made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
        return [{key: value.to(device) for key, value in batch.items()} for batch in made]


def shape(name: str) -> Shape:
    """`tiny` or `real`."""
    torch.manual_seed(0)
    if name == "tiny":
        return Shape(Tiny(16), Tiny(8), (4, 8), 100, "an embedding and a linear layer, 4 x 8 tokens")
    return Shape(bert(256, 4), bert(192, 2), (16, 64), 8, "BERT, 192 wide, 2 layers, of 256 x 4; 16 x 64 tokens")


def yardstick(device: torch.device) -> float:
    """The microseconds that a step of fused AdamW takes on the four tensors of a small MLP: nearly all of it Python."""
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4)).to(device)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer, taken = torch.optim.AdamW(model.parameters(), fused=True), []
    for _ in range(15):
        start = time.process_time()
        for _ in range(500):
            optimizer.step()
        taken.append((time.process_time() - start) / 500)
    return 1e6 * min(taken)


def logits(output: Any) -> Tensor:
    """Logits of a model of ours or of transformers."""
    found: Tensor = getattr(output, "logits", output)
    return found


def by_hand(
    teacher: nn.Module, student: nn.Module, optimizer: torch.optim.Optimizer, loader: Clocked, every: int = EVERY
) -> list[list[float]]:
    """Distil over the batches of a loader; the mean losses of every few steps, the first and the last as `fit` has.

    Raises ArithmeticError before an update that is not finite.
    """
    student.train()
    teacher.eval()
    device = next(student.parameters()).device
    parameters, rows = list(student.parameters()), []
    total, count = torch.zeros(3, device=device), 0
    for step, batch in enumerate(loader, 1):
        batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        with torch.no_grad():
            theirs = logits(teacher(**inputs))
        own = logits(student(**inputs))
        log_q = functional.log_softmax(own / TEMPERATURE, dim=-1)
        soft = functional.softmax(theirs / TEMPERATURE, dim=-1)
        kd = -(soft * log_q).sum(-1).mean() * TEMPERATURE**2
        ce = functional.cross_entropy(own, batch["labels"])
        loss = kd + ce
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            raise ArithmeticError(f"step {step} is not finite")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            total += torch.stack([loss, kd, ce])
        count += 1
        if step in (1, len(loader)) or step % every == 0:
            *losses, _ = torch.cat([total / count, norm[None]]).tolist()
            rows.append(losses)
            total, count = torch.zeros(3, device=device), 0
    return rows


class Rows:
    """Keeps the losses of every row."""

    def __init__(self) -> None:
        self.losses: list[list[float]] = []

    def log(self, state: hb.State) -> None:
        """One more."""
        self.losses.append([state.record[name] for name in ("loss", "loss/kd_ce", "loss/ce")])


class Bench:
    """One shape: each variant has a student and an optimizer of its own, equal at the start."""

    def __init__(self, given: Shape, device: torch.device, folder: Path) -> None:
        self.given, self.device, self.folder = given, device, folder
        self.batches, self.runs = given.batches(device), 0

    def pair(self) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
        """Teacher, student, and what moves it."""
        teacher, student = (deepcopy(model).to(self.device) for model in (self.given.teacher, self.given.student))
        return teacher, student, torch.optim.AdamW(student.parameters(), RATE, fused=True)

    def distillation(self, teacher: nn.Module, student: nn.Module) -> hb.Distillation:
        """Ours, with the two losses that are written out above."""
        return hb.Distillation(teacher, student, [hb.loss("kd_ce", temperature=TEMPERATURE), hb.loss("ce")])

    def check(self, steps: int = 12) -> None:
        """Both loops give the same losses, row by row, and the same weights."""
        rows, (teacher, own, optimizer) = Rows(), self.pair()
        options = {"epochs": 1, "log_every": 1, "precision": "fp32"}
        loader = Clocked(self.batches, steps)
        self.distillation(teacher, own).fit(loader, optimizer=optimizer, callbacks=[rows], **options)
        teacher, student, optimizer = self.pair()
        torch.testing.assert_close(rows.losses, by_hand(teacher, student, optimizer, loader, 1), rtol=1e-5, atol=0)
        for ours, theirs in zip(own.parameters(), student.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)

    def operations(self, steps: int = 4) -> dict[str, float]:
        """How many operations of torch one step makes, without its row."""
        found = {}
        for name in (HAND, FIT):
            teacher, student, optimizer = self.pair()
            with Operations() as seen:
                loader = Clocked(self.batches, steps, clock=lambda seen=seen: seen.made)
                if name == HAND:
                    by_hand(teacher, student, optimizer, loader)
                else:
                    options = {"epochs": 1, "log_every": EVERY, "precision": "fp32"}
                    self.distillation(teacher, student).fit(loader, optimizer=optimizer, **options)
            found[name] = loader.least()
        return found

    def variants(self) -> dict[str, Any]:
        """By name: a call that trains for one round and says the seconds of a step."""
        made: dict[str, Any] = {name: self.hand(*self.pair()) for name in (HAND, AGAIN)}
        return made | {FIT: self.fit(*self.pair()), WHOLE: self.fit(*self.pair(), whole=True)}

    def hand(self, teacher: nn.Module, student: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        """The loop above."""
        loader = Clocked(self.batches, self.given.steps)

        def once() -> float:
            by_hand(teacher, student, optimizer, loader)
            return loader()

        return once

    def fit(
        self, teacher: nn.Module, student: nn.Module, optimizer: torch.optim.Optimizer, *, whole: bool = False
    ) -> Any:
        """Ours; whole: with the callbacks that write rows and show lines, as every run of the command line has."""
        loader, run = Clocked(self.batches, self.given.steps), self.distillation(teacher, student)
        options = {"epochs": 1, "log_every": EVERY, "precision": "fp32", "optimizer": optimizer}

        def once() -> float:
            if not whole:
                run.fit(loader, **options)
                return loader()
            self.runs += 1
            callbacks = [hb.callback(name) for name in ("metrics", "progress", "weights", "checkpoint")]
            with redirect_stderr(StringIO()):  # else a terminal's own speed is measured
                run.fit(loader, callbacks=callbacks, output=self.folder / str(self.runs), **options)
            return loader()

        return once


def alternated(variants: Mapping[str, Any], count: int) -> dict[str, list[float]]:
    """Seconds a step of all variants, one after the other in each round; one round warms up."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(-1, count):
        for name in (*variants,) if number % 2 else (*reversed(variants),):
            gc.collect()
            taken = variants[name]()
            if number >= 0:
                times[name].append(taken)
    return times


def above(times: list[float], plain: list[float]) -> dict[str, float]:
    """Microseconds a step above the loop by hand in the same round: the median, and where half of the rounds lie."""
    each = sorted(1e6 * (a - b) for a, b in zip(times, plain, strict=True))
    return {"middle": median(each), "low": each[len(each) // 4], "high": each[-1 - len(each) // 4]}


def measured(bench: Bench, name: str, count: int) -> dict[str, Any]:
    """All variants of one shape."""
    times = alternated(bench.variants(), count)
    report: dict[str, Any] = {}
    operations, yard = bench.operations(), yardstick(bench.device)
    for variant, each in times.items():
        found: Ratio = ratio(each, times[HAND])
        line = found._asdict() | {"microseconds": above(each, times[HAND])}
        if variant in (FIT, WHOLE):
            if name in RATIOS:
                line |= {"target": RATIOS[name], "verdict": verdict(found, 0.0, RATIOS[name])}
            if name in MICROSECONDS:
                most, middle = MICROSECONDS[name] * yard / YARDSTICK, line["microseconds"]["middle"]
                line |= {"target": most, "yardstick": yard, "verdict": "met" if middle <= most else "missed"}
        if variant in operations:
            line["operations"] = operations[variant]
        report[variant] = line
    return report


def show(console: Console, title: str, report: Mapping[str, Any]) -> None:
    """The figures of one shape."""
    compared = ("a step", "us", "min", "median", "95 %", "us above", "half of the rounds")
    table = Table(*compared, "operations", "target", "", title=title)
    for name, line in report.items():
        more, goal = line["microseconds"], line.get("target")
        text = "" if goal is None else f"<= {goal:.0f} us" if "yardstick" in line else f"<= {goal:g}"
        table.add_row(
            name,
            f"{1000 * line['milliseconds']:.0f}",
            f"{line['fastest']:.3f}",
            f"{line['middle']:.3f}",
            f"{line['low']:.3f}..{line['high']:.3f}",
            f"{more['middle']:+.1f}",
            f"{more['low']:+.1f}..{more['high']:+.1f}",
            f"{line['operations']}" if "operations" in line else "",
            text,
            line.get("verdict", ""),
        )
    console.print(table)


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shapes", type=lambda text: text.split(","), default=["tiny", "real"], help="tiny,real")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Check, measure, print, write."""
    given = options(argv)
    torch.set_num_threads(1)
    logging.getLogger("hookbrew").setLevel(logging.ERROR)
    console = Console(width=None if sys.stdout.isatty() else 130)
    report: dict[str, Any] = {"machine": machine(given.device), "shapes": {}}
    with TemporaryDirectory() as folder:
        for name in given.shapes:
            bench = Bench(shape(name), given.device, Path(folder) / name)
            bench.folder.mkdir()
            bench.check()
            report["shapes"][name] = measured(bench, name, given.rounds)
            title = f"{bench.given.title}; {given.rounds} rounds of {bench.given.steps} steps"
            show(console, title, report["shapes"][name])
    write(given.json, report)


if __name__ == "__main__":
    main()
