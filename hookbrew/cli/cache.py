"""`hookbrew cache`: what teachers said, kept on the disk: build it, look at it, check it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hookbrew.cli.context import Context
from hookbrew.cli.settings import config_file, settings

if TYPE_CHECKING:
    from hookbrew.loop import Batch

FACTS = "cache.json"
"""The file that a folder of a cache has."""


@click.group()
def cache() -> None:
    """Keep what teachers say, so that runs need not compute it."""


@cache.command()
@config_file
@settings
@click.option("--quiet", is_flag=True, help="Show no progress.")
@click.pass_obj
def build(context: Context, config: str, sets: tuple[str, ...], quiet: bool) -> None:
    """Run only the teachers of CONFIG, on all its training data.

    What is there already is not computed again, and what was written stays, whatever ends this: the same command goes
    on. Processes that torchrun starts share the work.
    """
    from hookbrew.keeping import keep
    from hookbrew.ranks import leading

    shown = bar if sys.stderr.isatty() and leading() and not quiet else plain
    try:
        found = keep(config, sets, catalogue=context.catalogue(), track=shown)
    except KeyboardInterrupt:
        click.echo("what was written stays; the same command goes on", err=True)
        raise
    for each in found if leading() else ():
        click.echo(f"{each.at}: {each.fresh} examples added, {summary(each.folder)['examples']} in {each.folder}")


def bar(batches: Iterable[Batch], number: int, title: str) -> Iterator[Batch]:
    """The batches, with a bar on stderr."""
    from rich.console import Console
    from rich.progress import track

    yield from track(batches, description=title, total=number, console=Console(stderr=True))


def plain(batches: Iterable[Batch], number: int, title: str) -> Iterable[Batch]:
    """The batches as they are."""
    return batches


@cache.command()
@click.argument("source", metavar="CONFIG|FOLDER", type=click.Path(path_type=Path))
@settings
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.pass_obj
def info(context: Context, source: Path, sets: tuple[str, ...], as_json: bool) -> None:
    """Say what a cache is of, and how much of it there is.

    Of a CONFIG also whether its teachers and losses are those that the cache is of; where they are not, this fails with
    what differs.
    """
    if source.is_dir():
        if sets:
            raise click.UsageError("-s is for a configuration file")
        found = [summary(folder) for folder in folders(source)]
    else:
        from hookbrew.keeping import matching

        lessons = matching(source, sets, catalogue=context.catalogue())
        found = [{"of": each.seat.at, **summary(each.folder)} for each in lessons if each.there]
        for each in lessons:
            if not each.there and not as_json:
                click.echo(f"{each.seat.at}: nothing yet in {each.folder}")
    if as_json or found:
        click.echo(json.dumps(found, indent=2) if as_json else "\n".join(map(text, found)))


def summary(folder: Path) -> dict[str, Any]:
    """What there is in a folder."""
    from hookbrew.keeping import summed

    return summed(folder)


def folders(folder: Path) -> list[Path]:
    """The caches in a folder: itself, or one for each teacher; itself too if there is none, to be refused."""
    inner = sorted(path.parent for path in folder.glob(f"*/{FACTS}"))
    return [folder] if (folder / FACTS).exists() or not inner else inner


def text(found: dict[str, Any]) -> str:
    """A summary in lines."""
    stored = dict(found["stored"])
    parts = ", ".join(
        f"{name} {dtype}{' per token' if any(along) else ''}" for name, dtype, *along in stored.pop("parts")
    )
    kind = " ".join([stored.pop("kind"), *(f"{key} {value}" for key, value in stored.items())])
    of = f", of {found['of']} and all that its losses read" if "of" in found else ""
    cut = f"; {found['cut']} end in a part of a record, as a killed process leaves them" if found["cut"] else ""
    lines = [
        f"{found['folder']}{of}",
        f"  teacher    {found['teacher']}, weights {found['weights']}",
        f"  computed   in {found['precision']}; reads {', '.join(found['taps'])}",
        f"  kept       {kind}: {parts}",
        f"  tokenizer  {found['tokenizer'] or 'not told'}",
        f"  examples   {found['examples']}, {found['bytes']:,} bytes in {found['shards']} shards{cut}",
        *(f"  damaged    {message}" for message in found["damaged"]),
    ]
    return "\n".join(lines)


@cache.command()
@click.argument("folder", type=click.Path(path_type=Path))
def verify(folder: Path) -> int:
    """Check every record of the cache in FOLDER against its checksum.

    The exit code is 1 if something is lost, and 0 if nothing is, or if damaged records were computed again. A damaged
    index counts as lost until it is removed.
    """
    from hookbrew.cache import Cache

    lost = False
    for each in folders(folder):
        found = Cache(each)
        before, wrong = len(found), [*found.wrong]
        for message in found.verify():
            click.echo(message)
        gone = before - len(found)
        click.echo(f"{each}: {len(found)} examples are whole" + (f", {gone} are lost" if gone else ""))
        if gone or wrong:
            lost = True
            what = "`hookbrew cache build` computes what is lost again"
            click.echo(f"{what}; an index that is damaged is to be removed before, with its data" if wrong else what)
    return int(lost)
