"""The argument and the option that every command on a configuration file has."""

from __future__ import annotations

import click

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
