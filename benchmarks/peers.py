"""What a step costs with others and with us, beside a loop written by hand: the same models, batches and loss.

    python benchmarks/peers.py [--rounds 7] [--steps 6] [--works logits,matches] [--json FILE] [--plot FILE.png]

Before anything is timed, all must compute the same losses, step by step. Toolkits that are not installed are left out,
and said so.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import attrs
import torch
from loop import Clocked, alternated
from measure import machine, plotting, ratio, verdict, write
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from work import WORKS, Work

import hookbrew as hb

HAND, AGAIN, FUSED, FIT = "by hand", "by hand again", "by hand, fused AdamW", "hookbrew"
RATE = 1e-4
Optimizer = torch.optim.Optimizer


def adamw(parameters: Any, *, fused: bool = True) -> Optimizer:
    """What moves the student; by hand as torch has it when nothing is said."""
    return torch.optim.AdamW(parameters, RATE, fused=True) if fused else torch.optim.AdamW(parameters, RATE)


@attrs.define
class Side:
    """One way to do a job: it keeps its models, and trains them on."""

    work: Work
    student: nn.Module
    teacher: nn.Module
    projections: nn.ModuleList
    loader: Clocked
    losses: list[Tensor] = attrs.field(factory=list)
    """Of the steps of the last call."""

    def loss(self, own: Any, theirs: Any, labels: Tensor | None) -> Tensor:
        """As a person writes it."""
        found = self.work.loss(own, theirs, labels, self.projections)
        self.losses.append(found.detach())
        return found

    def trained(self) -> list[nn.Parameter]:
        """All that moves."""
        return [*self.student.parameters(), *self.projections.parameters()]

    def outputs(self, batch: Mapping[str, Tensor]) -> tuple[Any, Any]:
        """What both models return."""
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        with torch.no_grad():
            theirs = self.teacher(**inputs, **self.work.asked)
        return self.student(**inputs, **self.work.asked), theirs


def by_hand(side: Side, *, fused: bool) -> Callable[[], None]:
    """The loop that everybody writes."""
    optimizer = adamw(side.trained(), fused=fused)

    def train() -> None:
        side.student.train()
        side.teacher.eval()
        for batch in side.loader:
            own, theirs = side.outputs(batch)
            side.loss(own, theirs, batch.get("labels")).backward()
            optimizer.step()
            optimizer.zero_grad()

    return train


class Rows:
    """Keeps the loss of each step."""

    def __init__(self, kept: list[Tensor]) -> None:
        self._kept = kept

    def step_end(self, state: hb.State) -> None:
        """One more."""
        assert state.loss is not None
        self._kept.append(state.loss.detach())


def hookbrew(side: Side) -> Callable[[], None]:
    """Ours, with the projections that the others have."""
    run = hb.Distillation(side.teacher, side.student, side.work.losses())
    options = {"epochs": 1, "log_every": 10**6, "precision": "fp32"}
    optimizer = adamw(side.student.parameters())
    if side.projections:
        run.fit(Clocked(side.loader.batches, 1), optimizer=torch.optim.SGD(side.student.parameters(), 0.0), **options)
        made = [module for name, module in run.objective.extras.items() if "Linear" in type(module).__name__]
        for own, given in zip(made, side.projections, strict=True):
            own.load_state_dict(given.state_dict())

    def train() -> None:
        run.fit(side.loader, optimizer=optimizer, callbacks=[Rows(side.losses)], **options)

    return train


def trainer(side: Side) -> Callable[[], None]:
    """transformers' Trainer, its `compute_loss` overridden; projections belong to the model that it trains."""
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.projections = side.student, side.projections

        def forward(self, **batch: Tensor) -> Tensor:
            own, theirs = side.outputs(batch)
            return side.loss(own, theirs, batch.get("labels"))

    class Distilling(Trainer):  # type: ignore[misc]  # untyped
        def compute_loss(self, model: nn.Module, inputs: Any, *_: Any, **__: Any) -> Tensor:
            found: Tensor = model(**inputs)
            return found

        def get_train_dataloader(self) -> Clocked:
            return side.loader

    given = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no"}
    arguments = TrainingArguments(max_steps=len(side.loader), max_grad_norm=0.0, **given)
    whole = Whole()
    optimizer = adamw(whole.parameters())
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    made = Distilling(whole, arguments, optimizers=(optimizer, constant))
    made.remove_callback(PrinterCallback)

    def train() -> None:
        side.teacher.eval()
        made.train()

    return train


Maker = Callable[[Side], Callable[[], None]]
PEERS: dict[str, tuple[str, Maker]] = {"Trainer of transformers": ("accelerate", trainer)}
"""By name: the package that it needs, and what makes it."""


def sided(work: Work, steps: int) -> Side:
    """Models and projections, the same for all."""
    student, teacher = work.models()
    if work.maps:  # nothing else returns attentions
        for model in (student, teacher):
            model.set_attn_implementation("eager")
    torch.manual_seed(1)
    widths = student.config.hidden_size, teacher.config.hidden_size
    projections = nn.ModuleList(nn.Linear(*widths) for _ in work.hidden)
    return Side(work, student, teacher, projections, Clocked(work.batches(), steps))


def sides(work: Work, steps: int) -> dict[str, tuple[Side, Callable[[], None]]]:
    """Everybody who is there; hookbrew's models keep the attention that they came with."""
    makers: dict[str, Maker] = {
        HAND: lambda side: by_hand(side, fused=False),
        AGAIN: lambda side: by_hand(side, fused=False),
        FUSED: lambda side: by_hand(side, fused=True),
        FIT: hookbrew,
    }
    makers |= {name: make for name, (package, make) in PEERS.items() if find_spec(package)}
    found = {}
    for name, make in makers.items():
        side = sided(work, steps)
        if name == FIT:
            side.student, side.teacher = work.models()
        found[name] = side, make(side)
    return found


def check(work: Work, steps: int = 3) -> dict[str, float]:
    """Raise AssertionError unless all compute the same losses; how far each lies from the loop by hand, at most."""
    losses = {}
    for name, (side, train) in sides(work, steps).items():
        side.losses.clear()
        train()
        losses[name] = torch.stack(side.losses)
    away = {name: float((found / losses[HAND] - 1).abs().max()) for name, found in losses.items()}
    assert max(away.values()) < 1e-4, f"not the same loss: {away}"
    return away


def measured(work: Work, rounds: int, steps: int) -> dict[str, Any]:
    """The lines of one job."""
    report: dict[str, Any] = {"title": work.title, "target": work.target, "away": check(work), "lines": {}}
    calls = {}
    for name, (side, train) in sides(work, steps).items():

        def once(side: Side = side, train: Callable[[], None] = train) -> float:
            side.losses.clear()
            train()
            return side.loader()

        calls[name] = once
    times = alternated(calls, rounds)
    for name, each in times.items():
        report["lines"][name] = ratio(each, times[HAND])._asdict()
    report["verdict"] = verdict(ratio(times[FIT], times[HAND]), 0.0, work.target)
    return report


def show(console: Console, report: Mapping[str, Any]) -> None:
    """The figures of one job."""
    table = Table("CPU time of a step", "ms", "median", "95 %", "target", "", title=report["title"])
    for name, line in report["lines"].items():
        goal = (f"<= {report['target']:g}", report["verdict"]) if name == FIT else ("", "")
        spread = f"{line['low']:.3f}..{line['high']:.3f}"
        table.add_row(name, f"{line['milliseconds']:.0f}", f"{line['middle']:.3f}", spread, *goal)
    console.print(table)


def plot(path: str, works: Mapping[str, Any]) -> None:
    """Ratios with their intervals, a panel for each job."""
    pyplot = plotting()
    figure, panels = pyplot.subplots(1, len(works), figsize=(4 * len(works), 3), squeeze=False, layout="constrained")
    for panel, (name, report) in zip(panels[0], works.items(), strict=True):
        for place, line in enumerate(report["lines"].values()):
            panel.plot([line["low"], line["high"]], [place, place], color="C0")
            panel.plot(line["middle"], place, "o", color="C0")
        panel.axvline(1.0, color="gray", linewidth=0.8)
        panel.axvline(report["target"], color="C1", linestyle="--", linewidth=0.8)
        panel.set(title=name, xlabel="CPU time / by hand", yticks=range(len(report["lines"])))
        panel.set_yticklabels([*report["lines"]] if panel is panels[0][0] else [])
        panel.invert_yaxis()
    figure.savefig(path, dpi=120)


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=6, help="of a round, at least 4: the first ones warm up")
    parser.add_argument("--works", type=lambda text: text.split(","), default=[*WORKS], help=",".join(WORKS))
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE.png")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Check, measure, print, write."""
    given = options(argv)
    torch.set_num_threads(1)
    for name in ("hookbrew", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning)
    console = Console(width=None if sys.stdout.isatty() else 110)
    for name, (package, _) in PEERS.items():
        if not find_spec(package):
            console.print(f"{name} is left out: {package} is not installed")
    report: dict[str, Any] = {"machine": machine(torch.device("cpu")), "works": {}}
    for name in given.works:
        report["works"][name] = measured(WORKS[name], given.rounds, given.steps)
        show(console, report["works"][name])
        gc.collect()
    write(given.json, report)
    if given.plot:
        plot(given.plot, report["works"])


if __name__ == "__main__":
    main()
