"""`hookbrew plugins`: who brings which names, what a name means, and a package for new ones."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hookbrew import words
from hookbrew.cli.context import Context
from hookbrew.errors import PluginError
from hookbrew.plugin import KINDS

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from hookbrew.plugin import Catalogue, Entry


@click.group()
def plugins() -> None:
    """List plugins, explain a name, or start a plugin."""


@plugins.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
@click.option("--events", is_flag=True, help="List when events come, and every callback with its events and filters.")
@click.pass_obj
def listed(context: Context, as_json: bool, events: bool) -> None:
    """List every plugin and the names that it offers.

    A plugin that is not there has a line too, which says why.
    """
    if events:
        from hookbrew.cli.events import described, tables

        facts = described(context.catalogue())
        click.echo(json.dumps(facts, indent=2) if as_json else tables(facts))
        return
    from hookbrew.cli.table import records, table

    rows = records(context.catalogue())
    click.echo(json.dumps(rows, indent=2) if as_json else table(rows))


def known(catalogue: Catalogue) -> set[str]:
    """The names that `show` takes: of components, and of plugins whether they loaded or not."""
    components = {name for kind in KINDS for name in catalogue.names(kind)}
    return components | {p.name for p in (*catalogue.plugins, *catalogue.failed, *catalogue.blocked)}


def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names that begin like this; imports no component."""
    from click.shell_completion import CompletionItem

    names = known(ctx.ensure_object(Context).catalogue())
    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


@plugins.command()
@click.argument("name", shell_complete=complete)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON: a list, for a name may be of several kinds.")
@click.pass_obj
def show(context: Context, name: str, as_json: bool) -> None:
    """Explain a component or plugin.

    For a component: what it computes, its options, and a TOML block to paste.
    """
    from hookbrew.cli.describe import description, text
    from hookbrew.cli.report import traced
    from hookbrew.cli.table import records, table

    catalogue = context.catalogue()
    entries = found(catalogue, name)
    if entries:
        described = [description(entry, catalogue) for entry in entries]
        click.echo(json.dumps(described, indent=2) if as_json else "\n\n".join(map(text, described)))
    else:
        rows = [row for row in records(catalogue) if row["name"] == name]
        click.echo(json.dumps(rows, indent=2) if as_json else table(rows))
        # without a place it is not the plugin's own code that raised, and the row says all
        errors = [plugin.error for plugin in catalogue.failed if plugin.name == name and plugin.where]
        for error in () if as_json else filter(None, errors):
            click.echo(f"\n{traced(error, context)}")


def found(catalogue: Catalogue, name: str) -> list[Entry]:
    """The components of this name; none if it is a plugin's. Raises PluginError if it is nobody's."""
    for kind, contested in catalogue.contested:
        if contested == name:
            raise PluginError(catalogue.explain(kind, name))
    entries = catalogue.find(name)
    if not entries and name not in known(catalogue):
        hint = words.hint(name, known(catalogue))
        raise PluginError("; ".join([f"no component or plugin called {name!r}", hint, *catalogue.left_out()]))
    return entries


@plugins.command()
@click.argument("name")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Where the folder hookbrew-NAME goes; here when left out.",
)
@click.pass_obj
def new(context: Context, name: str, folder: Path) -> None:
    """Start a package with a loss of your own.

    It is called hookbrew-NAME, can be installed, and has tests that pass.
    """
    from hookbrew.plugin.scaffold import component, scaffold

    loss = component(name)
    if context.catalogue().find(loss) or loss in known(context.catalogue()):
        raise PluginError(f"the name {loss!r} is taken: see `hookbrew plugins show {loss}`")
    package = scaffold(name, folder)
    installed, tested = shlex.quote(f"{package}[test]"), shlex.quote(str(package))
    click.echo(f"wrote {package}: python -m pip install -e {installed}; python -m pytest {tested}")
