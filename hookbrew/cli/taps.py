"""`hookbrew taps`: the module tree of a model, with selectors ready to paste; or the layer map of two."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from hookbrew.cli.context import Context
from hookbrew.cli.settings import settings

if TYPE_CHECKING:
    from hookbrew.taps import Outline


@click.command()
@click.argument("source", metavar="MODEL")
@click.argument("teacher", metavar="[TEACHER]", required=False)
@settings
@click.option(
    "--model",
    "side",
    help="Which model of a configuration file: student, if not said; teacher, or its name; of a task, trec.teacher.",
)
@click.option(
    "--map", "rule", type=click.Choice(["uniform", "last"]), help="Print a layer map: uniform, if two models are given."
)
@click.option("--json", "as_text", is_flag=True, help="Print JSON.")
@click.pass_obj
def taps(
    context: Context,
    source: str,
    teacher: str | None,
    sets: tuple[str, ...],
    side: str | None,
    rule: str | None,
    as_text: bool,
) -> None:
    """Print a model's module tree, or the layer map of two models.

    MODEL is a configuration file, or a folder or hub name of transformers, of which only the configuration is read. Of
    several stages it is the first one's.

    The tree has paths, classes, output shapes, selectors to paste, where attention can be read, and what the
    aliases mean. One batch goes through the model; a module that it does not call is marked.

    With MODEL and TEACHER, or a configuration file and --map, print [[losses]] tables that pair the student's blocks
    with the teacher's: `uniform` spreads them over the teacher, `last` takes its last ones.
    """
    from hookbrew.outline import is_file, outlined
    from hookbrew.taps import as_json, render

    mapped = bool(teacher or rule)
    files = any(name and is_file(name) for name in (source, teacher))
    if mapped and not teacher and not files:
        raise click.UsageError("a layer map is of two models: hookbrew taps STUDENT TEACHER")
    refuse("--model", side and mapped, "for the tree of one model")
    refuse("--model", side and not files, "for a configuration file")
    refuse("-s", sets and not files, "for a configuration file")
    if teacher:
        wanted = [(source, ["student"]), (teacher, ["teacher"])]
    else:
        wanted = [(source, ["student", "teacher"] if mapped else [side or "student"])]
    found = [one for name, sides in wanted for one in outlined(name, sets, sides, catalogue=context.catalogue())]
    if mapped:
        text = layer_map(found, rule or "uniform", as_text)
    else:
        text = json.dumps(as_json(found[0]), indent=2) if as_text else render(found[0])
    click.echo(text)


def refuse(option: str, ignored: object, meaning: str) -> None:
    """Nothing that was written is ignored."""
    if ignored:
        raise click.UsageError(f"{option} is {meaning}")


def layer_map(outlines: Sequence[Outline], rule: str, as_text: bool) -> str:
    """The layer map of a student and a teacher, as TOML or JSON."""
    from hookbrew.taps.layermap import as_data, as_toml, match

    student, teacher = (outline.layout for outline in outlines)
    matches = match(student, teacher, rule)
    return json.dumps(as_data(matches), indent=2) if as_text else as_toml(matches)
