"""`hookbrew report`: run folders become one page of HTML."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--to", metavar="FILE.html", type=click.Path(path_type=Path), help="Where to write the page.")
@click.option("--overwrite", is_flag=True, help="Replace FILE.html even if it is not an earlier report.")
def report(runs: tuple[Path, ...], to: Path | None, overwrite: bool) -> None:
    """Write one HTML page about one run folder or several.

    It has curves, a table of results, the configuration and what differs in it; it needs no network. Without --to it
    is RUN/report.html, or of several runs report.html in the folder that holds them all. A run may still be going on.
    """
    from hookbrew.report import beside, page, put, read, refuse

    target = to or beside(runs)
    found = read(runs)
    refuse(target, overwrite=overwrite)
    put(target, page(found), overwrite=overwrite)
    click.echo(f"{target}: {', '.join(run.label for run in found)}")
