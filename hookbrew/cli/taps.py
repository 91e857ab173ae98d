"""`hookbrew taps`: the module tree of a model, with selectors ready to paste."""

from __future__ import annotations

import json

import click

from hookbrew.cli.context import Context
from hookbrew.cli.settings import config_file, settings


@click.command()
@config_file
@settings
@click.option("--model", type=click.Choice(["student", "teacher"]), default="student", show_default=True)
@click.option("--json", "as_text", is_flag=True, help="Print the tree as JSON.")
@click.pass_obj
def taps(context: Context, config: str, sets: tuple[str, ...], model: str, as_text: bool) -> None:
    """Print a model's module tree.

    Paths, classes, output shapes, calls, and selectors to paste, for the student or teacher of CONFIG.

    One batch of the training data goes through the model; a module that it does not call is marked.
    """
    from hookbrew.outline import outlined
    from hookbrew.taps import as_json, render

    outline = outlined(config, sets, model, catalogue=context.catalogue())
    click.echo(json.dumps(as_json(outline), indent=2) if as_text else render(outline))
