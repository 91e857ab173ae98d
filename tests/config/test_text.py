"""Files that cannot be read, or are not TOML."""

import sys

import pytest

from hookbrew.config import read
from hookbrew.errors import ConfigError, Place


def refused(text, name="kd.toml"):
    with open(name, "wb") as file:
        file.write(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        read(name)
    return str(caught.value)


def test_a_missing_file_suggests_its_neighbour(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "distill.toml").touch()
    with pytest.raises(ConfigError) as caught:
        read("sub/distil.toml")
    assert str(caught.value) == "sub/distil.toml: there is no file of this name; did you mean 'sub/distill.toml'?"


def test_a_missing_file_in_a_missing_folder(folder):
    with pytest.raises(ConfigError) as caught:
        read("no/distil.toml")
    assert str(caught.value) == "no/distil.toml: there is no file of this name"


def test_a_folder(folder):
    with pytest.raises(ConfigError) as caught:
        read(".")
    assert str(caught.value) == ".: is a folder; give the TOML file in it"


@pytest.mark.skipif(sys.platform == "win32", reason="names are longer there")
def test_what_the_system_refuses_is_said_in_its_words(folder):
    with pytest.raises(ConfigError) as caught:
        read("x" * 300)
    assert str(caught.value) == f"{'x' * 300}: cannot read this file: file name too long"


def test_a_null_character_in_a_name(folder):
    with pytest.raises(ConfigError, match="cannot read this file: embedded null byte"):
        read("a\0b")


def test_not_utf8(folder):
    assert refused(b"a = 1\nb = '\xe4'\n") == "kd.toml:2:6: not UTF-8: byte 0xe4; save the file as UTF-8"


def test_a_byte_order_mark_and_windows_line_ends_are_no_fault(folder):
    (folder / "kd.toml").write_bytes(b"\xef\xbb\xbfa = 1\r\n\r\n[b]\r\nc = 2\r\n")
    document = read("kd.toml")
    assert document.tree == {"a": 1, "b": {"c": 2}}
    assert document.locate("b.c") == Place("kd.toml", 4, 1, "c = 2")


def test_syntax_has_a_caret(folder):
    assert refused("a = 1\nfused = no\n") == (
        "kd.toml:2:9: not TOML: invalid value\n  |\n2 | fused = no\n  |         ^"
    )


def test_syntax_at_the_end(folder):
    assert refused("a = 1\nb = [1,\n\n") == "kd.toml:2:8: not TOML: invalid value\n  |\n2 | b = [1,\n  |        ^"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = 1\nb = 2\n a = 3\n", "kd.toml:3:2: a is written twice; first on line 1\n  |\n3 |  a = 3\n  |  ^"),
        ("[t]\nx = 1\n[t]\n", "kd.toml:3:1: t is written twice; first on line 1\n  |\n3 | [t]\n  | ^^^"),
        ("[t]\nx = 1\nx.y = 2\nz = 3\n", "kd.toml:3:1: x"),
        ("[[t]]\nx = 1\n[[t]]\nx = 1\nx = 2", "kd.toml:5:1: t[1].x is written twice; first on line 4"),
        ("t = {a = 1, a = 2}\n", "kd.toml:1:13: t.a is written twice; first on line 1"),
        ("a.b = 1\na = 2", "kd.toml:2:1: a is written twice; first on line 1"),
    ],
)
def test_a_key_that_is_written_twice(folder, text, expected):
    if expected.endswith(": x"):  # tomllib's own words
        assert "kd.toml:3:" in refused(text)
    else:
        assert refused(text).startswith(expected)


def test_numbers_and_nesting_beyond_bounds(folder):
    assert "Exceeds the limit" in refused("a = " + "9" * 5000)
    assert refused("[t]\na = 0x" + "f" * 5000).startswith("kd.toml:2:1: t.a: integers have at most 64 bits\n")
    assert refused("a = " + "[" * 5000) == "kd.toml:1:1: lists or tables are nested too deep"
    assert ": nested more than 32 deep" in refused("a" + ".a" * 5000 + " = 1")
