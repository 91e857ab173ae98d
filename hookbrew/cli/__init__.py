"""The command `hookbrew`. Each subcommand is a module, imported when it is named; torch, inside its function."""

from __future__ import annotations

import click

from hookbrew.cli.commands import Commands
from hookbrew.cli.context import Context

COMMANDS = {
    "run": "hookbrew.cli.run:run",
    "resume": "hookbrew.cli.resume:resume",
    "check": "hookbrew.cli.check:check",
    "plan": "hookbrew.cli.plan:plan",
    "taps": "hookbrew.cli.taps:taps",
    "params": "hookbrew.cli.params:params",
    "export": "hookbrew.cli.export:export",
    "report": "hookbrew.cli.page:report",
    "compare": "hookbrew.cli.compare:compare",
    "cache": "hookbrew.cli.cache:cache",
    "config": "hookbrew.cli.config:config",
    "plugins": "hookbrew.cli.plugins:plugins",
    "migrate": "hookbrew.cli.migrate:migrate",
}


WIDE = {"max_content_width": 110}


@click.group(cls=Commands, lazy=COMMANDS, context_settings=WIDE)
@click.version_option(package_name="hookbrew", prog_name="hookbrew", message="%(prog)s %(version)s")
@click.option("--no-plugins", is_flag=True, help="Use no third-party plugin, as HOOKBREW_PLUGINS= does.")
@click.option("--traceback", is_flag=True, envvar="HOOKBREW_TRACEBACK", help="Show every frame of every error.")
@click.pass_obj
def main(context: Context, no_plugins: bool, traceback: bool) -> None:
    """Make a small model out of a big one.

    HOOKBREW_PLUGINS=a,b allows only these third-party plugins, HOOKBREW_BLOCK=c leaves one out.
    HOOKBREW_TRACEBACK=1 is the same as --traceback.
    """
    context.no_plugins, context.traceback = no_plugins, traceback


__all__ = ["main"]
