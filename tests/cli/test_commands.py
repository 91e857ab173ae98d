"""The command line itself: its commands, its help, and what it costs to ask for them."""

import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import hookbrew
from hookbrew.cli import COMMANDS, main
from hookbrew.cli.commands import Commands
from hookbrew.cli.context import Context


def test_every_command_is_there():
    context = click.Context(main)
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert command.help


def test_help():
    done = CliRunner().invoke(main, ["--help"])
    assert done.exit_code == 0
    listed = [line.split()[0] for line in done.stdout.partition("Commands:\n")[2].splitlines()]
    known = "run resume check plan taps params export report compare cache config plugins migrate"
    assert listed == known.split()


@pytest.mark.parametrize("group", [[], ["config"], ["plugins"]])
def test_no_sentence_of_the_help_is_cut_off(group):
    assert "..." not in CliRunner().invoke(main, [*group, "--help"]).stdout.replace("[ARGS]...", "")


def test_version():
    assert CliRunner().invoke(main, ["--version"]).stdout == f"hookbrew {hookbrew.__version__}\n"


def test_a_near_command():
    done = CliRunner().invoke(main, ["ckeck"])
    assert done.exit_code == 2
    assert done.stderr.endswith("Error: No such command 'ckeck'. Did you mean 'check'?\n")


@pytest.mark.parametrize("arguments", [["--nonsense"], ["plugins", "show"], ["plugins", "list", "--jsno"], []])
def test_wrong_usage(arguments):
    assert CliRunner().invoke(main, arguments).exit_code == 2


def test_the_traceback_from_the_environment():
    done = CliRunner().invoke(main, ["plugins", "show", "kdce"], env={"HOOKBREW_TRACEBACK": "1"})
    assert done.stderr.startswith("Traceback (most recent call last):\n")


def test_the_catalogue_is_made_once_and_late():
    context = Context(no_plugins=True)
    first = context.catalogue()
    assert context.catalogue() is first
    assert [plugin.name for plugin in first.plugins] == ["standard"]


def test_a_command_is_imported_when_it_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    text = "import click\n@click.command()\n@click.pass_obj\ndef go(context): click.echo(context)\n"
    (tmp_path / "hb_lazy_command.py").write_text(text)
    group = Commands("group", lazy={"go": "hb_lazy_command:go", "broken": "hb_no_such_command:x"})
    assert CliRunner().invoke(group, ["gone"]).exit_code == 2
    assert "hb_lazy_command" not in sys.modules
    done = CliRunner().invoke(group, ["go"])
    assert (done.exit_code, done.stdout) == (0, "Context(no_plugins=False, traceback=False, _catalogue=None)\n")


def test_without_standalone_mode_errors_are_raised():
    with pytest.raises(click.NoSuchCommand):
        main(["ckeck"], standalone_mode=False)


def test_python_m():
    command = [sys.executable, "-m", "hookbrew", "plugins", "show", "kdce"]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no component or plugin called 'kdce'; did you mean 'kd_ce'?")
