"""`hookbrew config`: what a file comes to, and the schema that editors read."""

from __future__ import annotations

import json

import click

from hookbrew.cli.context import Context
from hookbrew.cli.settings import config_file, settings


@click.group()
def config() -> None:
    """Show a file with its defaults, or the schema."""


@config.command()
@config_file
@settings
@click.option("--origin", is_flag=True, help="Before each value, where it comes from.")
@click.pass_obj
def show(context: Context, config: str, sets: tuple[str, ...], origin: bool) -> None:
    """Print CONFIG with every default.

    `extends` is merged, -s applied, and paths are absolute. The output is a configuration file again, but for --origin.
    """
    from hookbrew.config import origin_lines, read, staged, write, write_stages
    from hookbrew.plan import resolved

    stages = staged(read(config, sets))
    made = {name: resolved(document, context.catalogue()) for name, document in stages.items()}
    if not origin:
        click.echo(write_stages(made) if "" not in made else write(made[""]), nl=False)
        return
    for name, experiment in made.items():
        if name:
            click.echo(f"# stage {name}")
        lines = [(where, f"{key} = {value}") for key, value, where in origin_lines(stages[name], experiment)]
        width = max(len(where) for where, _ in lines)
        for where, line in lines:
            click.echo(f"{where:<{width}}  {line}")


@config.command()
@click.pass_obj
def schema(context: Context) -> None:
    """Print the JSON Schema of configurations.

    The components of installed plugins are included. Save it beside a file whose first line is
    `#:schema ./hookbrew.schema.json`, and editors complete and check keys.
    """
    from hookbrew.config import schema as described

    click.echo(json.dumps(described(context.catalogue()), indent=2))
