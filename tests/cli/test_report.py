"""What a user reads when something fails: one line if they can mend it, else their part of the traceback."""

import click
import pytest

from hookbrew.cli.context import Context
from hookbrew.cli.report import foreign, guarded, traced
from hookbrew.errors import ConfigError, NonFiniteError, Place, PluginError, Problem


def raising(error):
    def call():
        raise error

    return call


def test_success():
    assert guarded(lambda: None, Context()) == 0
    assert guarded(lambda: 3, Context()) == 3


def test_an_error_that_a_user_can_mend(capsys):
    assert guarded(raising(PluginError("no loss called 'x'")), Context()) == 2
    assert capsys.readouterr() == ("", "error: no loss called 'x'\n")


def test_each_mistake_has_its_line_and_caret(capsys):
    place = Place("a.toml", 2, 1, "epoch = 90", 5)
    error = ConfigError([Problem("epoch", "unknown key", place), Problem("train.steps", "expected an integer", "-s x")])
    assert guarded(raising(error), Context()) == 2
    assert capsys.readouterr().err == (
        "error: a.toml:2:1: epoch: unknown key\n"
        "  |\n"
        "2 | epoch = 90\n"
        "  | ^^^^^\n"
        "error: -s x: train.steps: expected an integer\n"
    )


def test_notes_and_an_exit_code_of_its_own(capsys):
    error = NonFiniteError("loss is nan at step 3")
    error.add_note("raised by callback 'x'")
    assert guarded(raising(error), Context()) == 76
    assert capsys.readouterr().err == "error: loss is nan at step 3\nnote: raised by callback 'x'\n"


def test_the_traceback_on_demand(capsys):
    assert guarded(raising(PluginError("what")), Context(traceback=True)) == 2
    told = capsys.readouterr().err
    assert told.startswith("Traceback (most recent call last):\n")
    assert told.endswith("hookbrew.errors.PluginError: what\nerror: what\n")


@click.command()
def interrupted():
    raise KeyboardInterrupt


@click.command()
def exhausted():
    raise EOFError("the workers are gone")


def test_an_interrupt(capsys):
    assert guarded(lambda: interrupted.main([], standalone_mode=False), Context()) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


def test_an_end_of_file_in_a_run_is_no_interrupt(capsys):
    assert guarded(lambda: exhausted.main([], standalone_mode=False), Context()) == 1
    assert "EOFError: the workers are gone\n" in capsys.readouterr().err


def test_an_exit_of_foreign_code_is_no_success(capsys, layers):
    error = layers("hookbrew", "mine", raising="raise SystemExit(0)")
    assert guarded(raising(error), Context()) == 1
    told = capsys.readouterr().err
    assert "mine.py" in told
    assert told.endswith(
        "SystemExit: 0\n(without the frames of hookbrew; `hookbrew --traceback ...` shows all of them)\n"
    )


def test_an_exit_of_click_ends_the_command(tmp_path):
    error = compiled(tmp_path, "click", "def f():\n    raise SystemExit(4)\n")
    with pytest.raises(SystemExit) as ended:
        guarded(error, Context())
    assert ended.value.code == 4


def test_no_color(capsys, monkeypatch):
    monkeypatch.setattr(click.utils, "should_strip_ansi", lambda *_: False)
    guarded(raising(PluginError("what")), Context())
    assert capsys.readouterr().err == "\x1b[31m\x1b[1merror:\x1b[0m what\n"
    monkeypatch.setenv("NO_COLOR", "1")
    guarded(raising(PluginError("what")), Context())
    assert capsys.readouterr().err == "error: what\n"


def test_usage(capsys):
    assert guarded(raising(click.UsageError("what")), Context()) == 2
    assert capsys.readouterr().err == "Error: what\n"


def compiled(tmp_path, package, text, **names):
    """The function f of a module of some package, written in a file."""
    file = tmp_path / f"{package}.py"
    file.write_text(text)
    names["__name__"] = f"{package}.module"
    exec(compile(text, str(file), "exec"), names)
    return names["f"]


def caught(call):
    with pytest.raises(BaseException) as info:  # noqa: PT011  # whatever it is, its frames are what counts
        call()
    return info.value


def lines(told):
    return [line.rpartition("/")[2].partition(",")[0].strip('"') for line in told.splitlines() if "File " in line]


@pytest.fixture
def layers(tmp_path):
    """A call through packages of these names, the last of which raises."""

    def call(*packages, raising="raise ValueError('bad')"):
        function = None
        for package in reversed(packages):
            text = f"def f():\n    {'g()' if function else raising}\n"
            function = compiled(tmp_path, package, text, g=function)
        # the frames of pytest and of this test are as foreign as the user's
        return caught(function).with_traceback(caught(function).__traceback__.tb_next)

    return call


def test_a_user_sees_their_own_frames(layers):
    told = traced(layers("click", "hookbrew", "torch", "mine", "hookbrew", "torch", "yours"), Context())
    assert lines(told)[-2:] == ["mine.py", "yours.py"]
    assert "torch.py" not in told
    assert told.endswith(
        "ValueError: bad\n(without the frames of hookbrew; `hookbrew --traceback ...` shows all of them)"
    )


def test_what_foreign_code_called_last_stays(layers):
    assert lines(traced(layers("hookbrew", "mine", "torch"), Context()))[-2:] == ["mine.py", "torch.py"]


def test_all_of_it_when_we_are_to_blame(layers):
    told = traced(layers("click", "mine", "hookbrew_plugins", "torch"), Context())
    assert lines(told)[-4:] == ["click.py", "mine.py", "hookbrew_plugins.py", "torch.py"]
    assert "without the frames" not in told


def test_all_of_it_on_demand(layers):
    told = traced(layers("click", "hookbrew", "mine"), Context(traceback=True))
    assert lines(told)[-3:] == ["click.py", "hookbrew.py", "mine.py"]


def test_a_cause_is_shortened_too(layers):
    error = layers("hookbrew", "mine")
    error.__cause__ = layers("hookbrew", "yours")
    told = traced(error, Context())
    assert "hookbrew.py" not in told
    assert "yours.py" in told


def test_notes_are_shown(layers):
    error = layers("hookbrew", "mine")
    error.add_note("raised by callback 'ema'")
    assert "\nraised by callback 'ema'\n" in traced(error, Context())


@pytest.mark.parametrize(
    ("owners", "kept"),
    [
        ([], []),
        (["hookbrew"], []),
        (["torch", "json"], []),
        (["hookbrew", "mine"], [1]),
        (["hookbrew", "mine", "torch", "json"], [1, 2, 3]),
        (["hookbrew", "mine", "torch", "transformers"], [1, 3]),
        (["mine", "hookbrew", "json"], []),
    ],
)
def test_frames(owners, kept):
    assert foreign(owners) == kept
