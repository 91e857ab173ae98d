"""How far a run is: a bar with the time left on a terminal, plain lines elsewhere (logs, CI, Slurm)."""

from __future__ import annotations

import sys
import time
from typing import ClassVar

import attrs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from hookbrew.loop import State
from hookbrew.plugin import options, when


@options
class Progress:
    """Shows step, loss, learning rate, evaluations and the time left, on stderr."""

    def build(self) -> Terminal | Lines:
        """A bar if stderr is a terminal, else lines."""
        return Terminal() if sys.stderr.isatty() else Lines()


def clock(seconds: float) -> str:
    """Seconds as 0:42, 12:05 or 1:02:03."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def losses(record: dict[str, float]) -> str:
    """The loss and its parts: `loss 1.234 (kd_ce 1.1, hidden_mse 0.1)`."""
    parts = {name.removeprefix("loss/"): value for name, value in record.items() if name.startswith("loss/")}
    inner = ", ".join(f"{name} {value:.4g}" for name, value in parts.items())
    return f"loss {record['loss']:.4g}" + (f" ({inner})" if len(parts) > 1 else "")


def results(state: State) -> str:
    """The numbers of an evaluation: `step 30: accuracy 0.8500`."""
    inner = ", ".join(f"{name} {value:.4f}" for name, value in state.metrics.items())
    return f"step {state.step}: {inner or 'evaluated, no metrics'}"


@attrs.define(eq=False)
class Lines:
    """One line for each row of metrics."""

    priority: ClassVar[int] = 90
    optional: ClassVar[bool] = True

    _start: float = 0.0
    _had: int = 0
    """Steps that an earlier process made."""

    @when(main=True)
    def run_start(self, state: State) -> None:
        """Start the clock."""
        self._start, self._had = time.monotonic(), state.step

    @when(main=True)
    def log(self, state: State) -> None:
        """`step 30/120  epoch 1/4  loss 1.234  lr 4.5e-05  0:12 left`."""
        pace = (time.monotonic() - self._start) / (state.step - self._had)
        left = pace * (state.total_steps - state.step)
        epochs = f"/{state.total_epochs}" if state.total_epochs else ""
        say(
            f"step {state.step}/{state.total_steps}  epoch {state.epoch}{epochs}  {losses(state.record)}  "
            f"lr {state.record['lr']:.3g}  {clock(left)} left"
        )

    @when(main=True)
    def eval_end(self, state: State) -> None:
        """The numbers of an evaluation."""
        say(results(state))

    @when(main=True)
    def run_end(self, state: State) -> None:
        """Why it stopped, if it was asked to."""
        if state.stop_reason:
            say(f"stopped at step {state.step}: {state.stop_reason}")


def say(line: str) -> None:
    """A plain line on stderr, at once."""
    print(line, file=sys.stderr, flush=True)


@attrs.define(eq=False)
class Terminal:
    """One bar; its text changes only when a row is logged, so that it costs no host sync."""

    priority: ClassVar[int] = 90
    optional: ClassVar[bool] = True

    _bar: Bar | None = None
    _task: TaskID | None = None

    @when(main=True)
    def run_start(self, state: State) -> None:
        """Draw the bar."""
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("step", total=state.total_steps, completed=state.step, numbers="")
        self._bar.start()

    @when(main=True)
    def step_end(self, state: State) -> None:
        """Move the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=state.step)

    @when(main=True)
    def log(self, state: State) -> None:
        """Change its text."""
        if self._bar is not None and self._task is not None:
            # the sum only: parts by name would push the bar itself off a terminal of 80 columns
            self._bar.update(self._task, numbers=f"loss {state.record['loss']:.4g}  lr {state.record['lr']:.3g}")

    @when(main=True)
    def eval_end(self, state: State) -> None:
        """A line above the bar."""
        if self._bar is not None:
            self._bar.console.print(results(state), highlight=False, markup=False)

    @when(main=True)
    def run_end(self, state: State) -> None:
        """Why it stopped, if it was asked to."""
        if self._bar is not None and state.stop_reason:
            self._bar.console.print(f"stopped at step {state.step}: {state.stop_reason}", highlight=False, markup=False)

    def close(self, state: State) -> None:
        """Give the terminal back."""
        if self._bar is not None:
            self._bar.stop()
