"""What a user is told when a command fails, and its exit code.

    HookbrewError      error: ...         its own code, mostly 2
    a wrong usage      click's words      2
    Ctrl-C             interrupted        130
    anything else      the traceback      1, also for a sys.exit() in a user's code

A traceback begins at the first line of the user's or the plugin's code, unless our own code is to blame.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence

import click

from hookbrew.cli.context import Context
from hookbrew.errors import ConfigError, HookbrewError, PeerError, PreemptedError
from hookbrew.plugin.blame import package

OURS = frozenset({"hookbrew", "hookbrew_plugins", "click", "pluggy"})
"""Frames that tell a user nothing about their own code."""
PAUSE = 2
"""Seconds that a process which is not the first waits before it tells an error."""
NEUTRAL = frozenset({"torch", "attr", "attrs", "cattrs", *sys.stdlib_module_names})
"""Code that raises because its caller did something wrong."""


def guarded(call: Callable[[], object], context: Context) -> int:
    """Make the call, tell what went wrong, and give the exit code."""
    try:
        code = call()
    except click.Abort as error:  # click makes one of Ctrl-C, and of an EOFError, wherever that came from
        if isinstance(error.__cause__, EOFError):
            return unexpected(error.__cause__, context)
        click.echo("interrupted", err=True)
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except PeerError as error:
        time.sleep(PAUSE)  # the process that it was in tells it, and must live to do so
        return error.exit_code
    except HookbrewError as error:
        if rank := int(os.environ.get("RANK", "0")):
            # most mistakes are found by all processes at once: the first tells them, and torchrun ends the others
            time.sleep(PAUSE)
            error.add_note(f"in process {rank}")
            if isinstance(error, PreemptedError):
                return error.exit_code  # all end then, and the first one says so
        return expected(error, context)
    except SystemExit as error:
        if not foreign(owners(error)):  # click's: after a completion, or when nobody reads the output any more
            raise
        return unexpected(error, context)  # without a word, a run that stopped half-way would seem to be done
    except Exception as error:
        return unexpected(error, context)
    return code if type(code) is int else 0  # of Exit, as for --help


def expected(error: HookbrewError, context: Context) -> int:
    """Tell an error that the user can mend: one line for each mistake, and its caret."""
    if context.traceback:
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    plain = bool(os.environ.get("NO_COLOR"))
    problems = error.problems if isinstance(error, ConfigError) else (error,)
    for problem in problems:
        word = f"{error.word}:"
        click.echo(f"{word if plain else click.style(word, fg='red', bold=True)} {problem}", err=True)
    for note in getattr(error, "__notes__", ()):
        click.echo(f"note: {note}", err=True)
    return error.exit_code


def unexpected(error: BaseException, context: Context) -> int:
    """Show the traceback of a bug: a user's, a plugin's or ours."""
    click.echo(traced(error, context), err=True)
    return 1


def traced(error: BaseException, context: Context) -> str:
    """The traceback of an error, from the first line of foreign code on, or all of it with --traceback."""
    shown = traceback.TracebackException.from_exception(error)
    cut = not context.traceback and shorten(shown, error)
    note = "(without the frames of hookbrew; `hookbrew --traceback ...` shows all of them)\n" if cut else ""
    return ("".join(shown.format()) + note).rstrip()


def shorten(shown: traceback.TracebackException, error: BaseException) -> bool:
    """Keep the frames of foreign code, and of what it called last; say whether any were left out.

    Nothing is left out when the last frame that is not neutral is ours.
    """
    cut = False
    chain = ((shown.__cause__, error.__cause__), (shown.__context__, error.__context__))
    for earlier, cause in chain:
        if earlier is not None and cause is not None:
            cut |= shorten(earlier, cause)
    packages = owners(error)
    kept = foreign(packages)
    spoken = kept or isinstance(error, SyntaxError)  # which tells its line itself; no frame is in such a file
    if spoken and len(kept) < len(packages):
        shown.stack = traceback.StackSummary.from_list([shown.stack[index] for index in kept])
        cut = True
    return cut


def owners(error: BaseException) -> list[str]:
    """The packages of the frames that an error went through, outermost first."""
    return [package(frame.f_globals) for frame, _ in traceback.walk_tb(error.__traceback__)]


def foreign(packages: Sequence[str]) -> list[int]:
    """The frames to keep, by the packages that own them, outermost first; none if our own code is to blame."""
    named = [index for index, owner in enumerate(packages) if owner not in NEUTRAL]
    if not named or packages[named[-1]] in OURS:
        return []
    theirs = [index for index in named if packages[index] not in OURS]
    return [*theirs, *range(theirs[-1] + 1, len(packages))]
