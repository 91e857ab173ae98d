"""A group whose commands are imported when they are named, and whose errors are told in one line."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import click

from hookbrew.cli.context import Context
from hookbrew.cli.report import guarded

Resolved = tuple[str | None, click.Command | None, list[str]]
"""What click takes a first argument for: its name, the command, and the other arguments."""


class Commands(click.Group):
    """Subcommands by name -> `module:command`."""

    def __init__(self, *args: Any, lazy: Mapping[str, str], **extra: Any) -> None:
        super().__init__(*args, **extra)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order in which a user meets them."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in self.lazy:
            return None
        module, _, name = self.lazy[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Resolved:
        """The command that the first argument names; click itself looks for near names among the imported ones."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            raise click.NoSuchCommand(error.command_name, possibilities=self.lazy, ctx=ctx) from None

    def main(  # type: ignore[override]  # one signature for both of click's
        self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        """Run a command line and exit: 0, or as `report` says. Without `standalone_mode` errors are raised."""
        command = partial(super().main, args, standalone_mode=False, **{"obj": Context(), **extra})
        if not standalone_mode:
            return command()
        sys.exit(guarded(command, command.keywords["obj"]))
