"""The note on a failing hook: who raised it, and on which line."""

import functools
from textwrap import dedent

import pytest

from hookbrew.plugin import blame
from hookbrew.plugin.blame import outside, spot


@pytest.fixture
def written(tmp_path, monkeypatch):
    """written(text) -> the names in a module with that text."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text):
        file = tmp_path / "bad.py"
        file.write_text(dedent(text))
        names = {"__name__": "bad"}
        exec(compile(file.read_text(), str(file), "exec"), names)
        return names

    return write


def noted(function, sentence="raised by plugin 'bad'"):
    with pytest.raises(KeyError) as caught:
        function()
    blame(caught.value, function, sentence)
    return caught.value.__notes__


def test_the_line_in_the_function_that_was_called(written):
    hook = written("""\
        def inner():
            return {}["missing"]

        def hook():
            x = 1
            return inner()
        """)["hook"]
    assert noted(hook) == ["raised by plugin 'bad' (bad.py:6)"]


def test_a_decorated_function(written):
    hook = written("""\
        def hook():
            return {}["missing"]
        """)["hook"]

    @functools.wraps(hook)
    def decorated():
        return hook()

    assert noted(decorated) == ["raised by plugin 'bad' (bad.py:2)"]


def test_a_bound_method(written):
    cls = written("""\
        class Callback:
            def step_end(self):
                raise KeyError("missing")
        """)["Callback"]
    assert noted(cls().step_end) == ["raised by plugin 'bad' (bad.py:3)"]


def test_an_error_that_did_not_pass_there():
    error = KeyError("elsewhere")
    blame(error, test_an_error_that_did_not_pass_there, "said")
    assert error.__notes__ == ["said"]


def test_the_last_line_outside_the_machinery(written):
    hook = written("""\
        from hookbrew.words import nearest
        def hook():
            return nearest(None, 5)
        """)["hook"]
    with pytest.raises(TypeError) as caught:
        hook()
    assert outside(caught.value) == "bad.py:3"


def test_a_file_that_is_on_no_path():
    assert spot("/nowhere/at/all.py", 3) == "/nowhere/at/all.py:3"
