"""`hookbrew check`: every mistake found before an hour is spent."""

from __future__ import annotations

import click

from hookbrew.cli.context import Context
from hookbrew.cli.settings import config_file, settings


@click.command()
@config_file
@settings
@click.pass_obj
def check(context: Context, config: str, sets: tuple[str, ...]) -> None:
    """Find every mistake before training.

    Four levels: names, options, build and taps, one real step.

    Stops at the first level that fails, with all mistakes of that level. Writes nothing.
    """
    from hookbrew.check import check as levels

    def say(level: str, found: str) -> None:
        first, *rest = found.splitlines()
        click.echo(f"{level:<8} ok  {first}")
        for line in rest:
            click.echo(f"{'':<12}{line}")

    levels(config, sets, catalogue=context.catalogue(), say=say)
