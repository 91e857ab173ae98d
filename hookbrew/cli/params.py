"""`hookbrew params`: how large a model is, module by module; or two models side by side."""

from __future__ import annotations

import json

import click

from hookbrew.cli.context import Context
from hookbrew.cli.settings import settings


@click.command()
@click.argument("source", metavar="MODEL")
@click.argument("teacher", metavar="[TEACHER]", required=False)
@settings
@click.option("--depth", type=click.IntRange(0), default=2, show_default=True, help="How far down the tree.")
@click.option("--json", "as_text", is_flag=True, help="Print JSON.")
@click.pass_obj
def params(
    context: Context, source: str, teacher: str | None, sets: tuple[str, ...], depth: int, as_text: bool
) -> None:
    """Print the parameters, buffers and memory of a model.

    MODEL is a configuration file, whose student and teacher stand side by side, or a folder or hub name of
    transformers, of which only the configuration is read; or two of those: STUDENT TEACHER. Of several stages it is
    the first one's.

    Equal neighbours are one row. Shared tensors are counted once in each module that holds them, and named.
    """
    import attrs

    from hookbrew.outline import built, is_file
    from hookbrew.size import compared
    from hookbrew.size import params as counted

    if sets and not any(name and is_file(name) for name in (source, teacher)):
        raise click.UsageError("-s is for a configuration file")
    wanted = [(source, ["student"]), (teacher, ["teacher"])] if teacher else [(source, ["student", "teacher"])]
    found = [
        (name, counted(model, depth))
        for source, sides in wanted
        for name, model in built(source, sets, sides, catalogue=context.catalogue())
    ]
    counts = [each for _, each in found]
    if as_text:
        click.echo(json.dumps([attrs.asdict(each) for each in counts], indent=2))
        return
    named = [f"{name}\n{each}" if len(found) > 2 else str(each) for name, each in found]
    click.echo("\n\n".join([*([compared(*counts)] if len(found) == 2 else []), *named]))
