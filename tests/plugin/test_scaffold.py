"""`hookbrew plugins new`: a package that is sound from the first minute, and nothing overwritten."""

import ast
import importlib
import tomllib

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from hookbrew.cli import main
from hookbrew.errors import FolderError, PluginError
from hookbrew.plugin import catalogue
from hookbrew.plugin.scaffold import component, scaffold, titled

FILES = [
    "README.md",
    "hookbrew_attention_plus/__init__.py",
    "hookbrew_attention_plus/loss.py",
    "pyproject.toml",
    "tests/test_attention_plus.py",
]


def new(*arguments, code=0):
    done = CliRunner().invoke(main, ["plugins", "new", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr


@pytest.mark.parametrize("name", ["attention-plus", "attention_plus"])
def test_the_files(tmp_path, name):
    package = tmp_path / "hookbrew-attention-plus"
    told = new(name, "--folder", tmp_path)
    assert told == f"wrote {package}: python -m pip install -e '{package}[test]'; python -m pytest {package}\n"
    assert sorted(str(file.relative_to(package)) for file in package.rglob("*") if file.is_file()) == FILES
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    assert project["name"] == "hookbrew-attention-plus"
    assert project["entry-points"] == {"hookbrew": {"attention_plus": "hookbrew_attention_plus"}}
    assert "$" not in "".join(file.read_text() for file in package.rglob("*.py"))


def test_the_commands_can_be_pasted_whatever_the_folder_is_called(tmp_path):
    package = tmp_path / "my plugins" / "hookbrew-gap"
    told = new("gap", "--folder", package.parent)
    assert told.endswith(f": python -m pip install -e '{package}[test]'; python -m pytest '{package}'\n")


def test_the_package_is_a_plugin(tmp_path, monkeypatch):
    from hookbrew.testing import check_loss

    package = scaffold("fresh-idea", tmp_path)
    monkeypatch.syspath_prepend(package)
    known = catalogue(discover=False, plugins=[importlib.import_module("hookbrew_fresh_idea")])
    assert known.names("losses") == ["fresh_idea"]
    check_loss(known.load("losses", "fresh_idea")())


def test_nothing_is_overwritten(tmp_path):
    package = scaffold("gap", tmp_path)
    (package / "README.md").write_text("mine")
    with pytest.raises(FolderError) as caught:
        scaffold("gap", tmp_path)
    assert str(caught.value) == f"{package} exists already; nothing was written"
    assert (package / "README.md").read_text() == "mine"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    told = new("gap", "--folder", tmp_path / "file" / "deep", code=2)
    assert told == f"error: cannot write {tmp_path}/file/deep/hookbrew-gap: Not a directory\n"


BAD = "a name is made of a-z and 0-9, with single - or _ between, and begins with a letter"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Gap", f"'Gap' is not a name for a plugin: {BAD}"),
        ("2gap", f"'2gap' is not a name for a plugin: {BAD}"),
        ("a--b", f"'a--b' is not a name for a plugin: {BAD}"),
        ("../gap", f"'../gap' is not a name for a plugin: {BAD}"),
        ("gap\n", f"'gap\\n' is not a name for a plugin: {BAD}"),
        ("", f"'' is not a name for a plugin: {BAD}"),
        ("hookbrew-gap", "'hookbrew-gap': leave out 'hookbrew', the package gets it by itself: hookbrew-NAME"),
        ("lambda", "'lambda' means something else in the package that would be written; choose another name"),
        ("none", "'none' means something else in the package that would be written; choose another name"),
        ("partial", "'partial' means something else in the package that would be written; choose another name"),
        ("float", "'float' means something else in the package that would be written; choose another name"),
        ("plugins", "'plugins' means something else in the package that would be written; choose another name"),
        ("kd-ce", "the name 'kd_ce' is taken: see `hookbrew plugins show kd_ce`"),
        ("tensorboard", "the name 'tensorboard' is taken: see `hookbrew plugins show tensorboard`"),
        ("standard", "the name 'standard' is taken: see `hookbrew plugins show standard`"),
    ],
)
def test_refused_names(tmp_path, name, message):
    assert new("--folder", tmp_path, "--", name, code=2) == f"error: {message}\n"
    assert list(tmp_path.iterdir()) == []


@given(st.from_regex(r"[a-z][a-z0-9]{0,6}([-_][a-z0-9]{1,6}){0,2}", fullmatch=True))
def test_an_accepted_name_makes_an_identifier(name):
    try:
        loss = component(name)
    except PluginError:
        return
    assert loss.isidentifier()
    ast.parse(f"class {titled(loss)}: ...\ndef {loss}(): ...\n")
