"""`hookbrew run`: a configuration file becomes a trained student."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from hookbrew.cli.context import Context
from hookbrew.cli.settings import config_file, profiled, profiling, settings

if TYPE_CHECKING:
    from hookbrew.loop import State


@click.command()
@config_file
@settings
@click.option("--overwrite", is_flag=True, help="Replace the folder of an earlier run, once all checks have passed.")
@click.option("--resume", is_flag=True, help="Go on with the run that is there; begin one if there is none.")
@profiled
@click.option("--quiet", is_flag=True, help="Show no progress.")
@click.pass_obj
def run(
    context: Context,
    config: str,
    sets: tuple[str, ...],
    overwrite: bool,
    resume: bool,
    profile: bool,
    profile_steps: int | None,
    quiet: bool,
) -> None:
    """Train as CONFIG says, into its output folder.

    Everything is checked before the first step; `hookbrew check` does only that.

    --profile warms up, times N steps as they are and N steps part by part, and lets torch's profiler trace three more,
    which are not timed; then the run trains on. The table is printed at once, and is in OUTPUT/profile with the trace.
    """
    from hookbrew import heap
    from hookbrew.ranks import leading
    from hookbrew.run import run as train

    if overwrite and resume:
        raise click.UsageError("--overwrite begins anew, and --resume goes on; leave one of them out")
    if overwrite and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        raise click.UsageError("--overwrite would begin anew after each restart of torchrun; write --resume")
    heap.keep()
    catalogue, measured = context.catalogue(), profiling(profile, profile_steps)

    def say(line: str) -> None:
        if not quiet and leading():
            click.echo(line, err=True)

    say(f"plugins: {', '.join(f'{p.name} {p.version}' for p in catalogue.plugins) or 'none'}")
    how = {"overwrite": overwrite, "going": resume, "quiet": quiet}
    finished(train(config, sets, catalogue=catalogue, say=say, profile=measured, **how))


def finished(state: State) -> None:
    """Say that a run is done, and what came out; the first of several processes does."""
    if not state.ranks.main:
        return
    results = "".join(f"  {name} {value:.4f}" for name, value in state.metrics.items())
    why = f" ({state.stop_reason})" if state.stop_reason else ""
    click.echo(f"done: {state.step} steps{why}{results}  {state.folder}")
