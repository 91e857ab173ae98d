"""`hookbrew compare`: models beside each other on the same data."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hookbrew.cli.context import Context
from hookbrew.cli.settings import settings

if TYPE_CHECKING:
    from hookbrew.compare import Comparison

WIDE = 140
"""Characters of a table in a file or a pipe."""


class Sizes(click.ParamType[list[int]]):
    """`1,8,32`, or `none`."""

    name = "sizes"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """The numbers."""
        parts = [] if value == "none" else str(value).split(",")
        if not all(part.strip().isdigit() and int(part) for part in parts):
            self.fail(f"{value!r} is no list of batch sizes, as 1,8,32, or none", param, ctx)
        return list(dict.fromkeys(int(part) for part in parts))


@click.command()
@click.argument("models", metavar="[NAME=]MODEL...", nargs=-1, required=True)
@click.option("--data", metavar="CONFIG|RUN", help="Whose evaluation data; that of the models' run when left out.")
@settings
@click.option("--task", help="Of several tasks the one that is compared.")
@click.option("--batch-sizes", "sizes", type=Sizes(), metavar="N,N", help="Where speed is measured: 1,8,32; or none.")
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True, help="How often each model is timed.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads of the timing.")
@click.option("--limit", type=click.IntRange(1), help="Evaluate so many batches only.")
@click.option("--device", help="cpu, cuda:1 ...; that of the data's configuration when left out.")
@click.option(
    "--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True, help="Of autocast."
)
@click.option("--layers", multiple=True, metavar="[NAME=]SELECTOR", help="Layers whose CKA is measured: hidden[*].")
@click.option("--json", "data_file", type=click.Path(path_type=Path), metavar="FILE", help="Write all numbers.")
@click.option("--markdown", is_flag=True, help="Print the table in Markdown.")
@click.option("--to", metavar="FILE.html", type=click.Path(path_type=Path), help="Write a page with plots.")
@click.option("--overwrite", is_flag=True, help="Replace files that are no earlier comparison.")
@click.option("--quiet", is_flag=True, help="Do not say what is being measured.")
@click.pass_obj
def compare(
    context: Context,
    /,
    models: tuple[str, ...],
    data: str | None,
    sets: tuple[str, ...],
    task: str | None,
    device: str | None,
    layers: tuple[str, ...],
    data_file: Path | None,
    markdown: bool,
    to: Path | None,
    overwrite: bool,
    quiet: bool,
    **how: Any,
) -> None:
    """Compare teacher and students: size, speed, quality, agreement.

    MODEL is a run folder (its student; RUN:teacher is its teacher, RUN:best another folder in it), FILE.toml:teacher,
    a folder of transformers, or module:factory, with weights module:factory@FILE. The first model is what the others
    are compared with. One run alone stands for its teacher and its student.

    -s goes over the configuration of the data.
    """
    from hookbrew.chance import kept_random
    from hookbrew.compare import How, compared
    from hookbrew.compare.data import evaluated
    from hookbrew.compare.files import put, refuse
    from hookbrew.compare.source import Source
    from hookbrew.loop import chosen

    def say(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    refuse(data_file, to, overwrite=overwrite)
    ways = How(layers=named(layers), **how)
    with ExitStack() as stack:
        stack.enter_context(kept_random())
        source = Source(context.catalogue(), stack, task)
        found = source.named(models)
        samples = evaluated(source, data, sets)
        entries = source.entries(found, samples.names)
        place = chosen(device or samples.experiment.train.device)
        entries = ways.selected([entry.to(place) for entry in entries])
        feed = stack.enter_context(closing(samples.feed))
        result = compared(entries, feed, samples.names, ways, samples.drawn, say=say, data=samples.name)
    shown(result, markdown=markdown)
    for path in put(result, data_file, to, overwrite=overwrite):
        click.echo(f"written: {path}", err=True)


def named(layers: tuple[str, ...]) -> str | dict[str, str] | None:
    """A selector for all models, or for some by name."""
    pairs = [text.partition("=") for text in layers]
    plain = [text for text, (_, equals, _) in zip(layers, pairs, strict=True) if not equals]
    if plain and len(layers) > 1:
        raise click.UsageError("--layers is one selector for all models, or NAME=SELECTOR for each")
    return plain[0] if plain else {name: selector for name, _, selector in pairs} or None


def shown(found: Comparison, *, markdown: bool) -> None:
    """Print the table."""
    from hookbrew.compare import table

    if markdown:
        click.echo(table.markdown(found))
        return
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else WIDE).print(table.terminal(found))
