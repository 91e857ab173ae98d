"""`hookbrew migrate textbrewer`: TextBrewer's JSON as a configuration file of ours."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def migrate() -> None:
    """Turn another toolkit's configuration into one of ours."""


@migrate.command()
@click.argument("files", metavar="FILE.json...", nargs=-1, required=True, type=click.Path(path_type=Path))
def textbrewer(files: tuple[Path, ...]) -> None:
    """Print TextBrewer's DistillationConfig and TrainingConfig, as JSON, as one TOML file.

    Numbers of layers become the aliases hidden[i] and attention[i]. What has no counterpart is a comment at the top,
    with the reason; models, data and optimizer, which TextBrewer takes in Python, are for you to fill in.
    """
    from hookbrew.migrate import textbrewer as migrated

    click.echo(migrated(files), nl=False)
