"""`hookbrew resume`: a run that was stopped goes on, as if it never had been."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hookbrew.cli.context import Context
from hookbrew.cli.run import finished
from hookbrew.cli.settings import profiled, profiling, settings

if TYPE_CHECKING:
    from hookbrew.resume import Level


@click.command()
@click.argument("run", type=click.Path())
@settings
@click.option(
    "--require",
    type=click.Choice(["exact", "data", "weights"]),
    default="weights",
    show_default=True,
    help="Refuse a worse match: exact, equal bit for bit; data, no sample repeated or left out; weights, anything.",
)
@profiled
@click.option("--quiet", is_flag=True, help="Show no progress.")
@click.pass_obj
def resume(
    context: Context,
    run: str,
    sets: tuple[str, ...],
    require: Level,
    profile: bool,
    profile_steps: int | None,
    quiet: bool,
) -> None:
    """Go on with the run in a folder.

    From its newest checkpoint that is whole; what matches and what does not is printed first. A run that is done only
    writes its results again: give it more to do with -s train.epochs=...
    """
    from hookbrew import heap
    from hookbrew.ranks import leading
    from hookbrew.run import resume as train

    heap.keep()

    def say(line: str) -> None:
        if not quiet and leading():
            click.echo(line, err=True)

    measured = profiling(profile, profile_steps)
    catalogue = context.catalogue()
    finished(train(run, sets, catalogue=catalogue, require=require, quiet=quiet, say=say, profile=measured))
