"""The argument and the option that every command on a configuration file has, and what commands that train share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from hookbrew.profile import Profiling, Result

config_file = click.argument("config", type=click.Path())
"""CONFIG, a TOML file; whether it exists is said by the reader, which knows the near names."""

settings = click.option(
    "-s",
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help='Go over a key of the file: train.epochs=5 or "losses[1].weight=0.5". Values as in TOML; repeatable.',
)


def profiled(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a command that trains and may measure some steps on the way."""
    says = "Measure some steps on the way: where their time goes, and a trace. The run goes on to its end."
    steps = click.option(
        "--profile-steps",
        type=click.IntRange(1),
        metavar="N",
        help="With --profile: time N steps as a whole, and again part by part; 20 when left out.",
    )
    return click.option("--profile", is_flag=True, help=says)(steps(command))


def profiling(wanted: bool, steps: int | None) -> Profiling | None:
    """What those options say; raises UsageError for a number of steps that would mean nothing."""
    if not wanted:
        if steps is not None:
            raise click.UsageError("--profile-steps is how many --profile measures; write both")
        return None
    from hookbrew.profile import Profiling

    return Profiling(show=shown, **({} if steps is None else {"steps": steps}))


def shown(result: Result, where: Path) -> None:
    """Print what a profile found, in between what the run prints."""
    from hookbrew.profile import result as page

    names = "summary.json" + (", trace.json.gz (for ui.perfetto.dev)" if result.traced else "")
    written = f"written: {where}: {names}"
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        with console.capture() as table:
            console.print(page.terminal(result))
        print(table.get() + written)  # not echoed: a bar that is shown meanwhile makes room for what is printed
    else:
        click.echo(f"{page.text(result)}\n{written}")
