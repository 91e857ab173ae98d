"""Settings of the command line."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookbrew.config import read, structure
from hookbrew.config.faults import Mismatch
from hookbrew.config.sets import parse
from hookbrew.errors import ConfigError


@pytest.fixture
def kd(folder):
    (folder / "kd.toml").write_text(
        'seed = 1\n[train]\nepochs = 3\n[[losses]]\ntype = "kd"\n[[losses]]\ntype = "hidden"\nnorm = "l1"\n'
    )

    def run(*sets):
        return read("kd.toml", sets)

    return run


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("lr=1e-3", 0.001),
        ("betas=[0.9,0.99]", [0.9, 0.99]),
        ("output=runs/a", "runs/a"),
        ("expr=a=b", "a=b"),
        ("fused=no", "no"),
        ("fused=true", True),
        ("name=3", 3),
        ('name="3"', "3"),
        ("name=", ""),
        (" name = x y ", "x y"),
        ("weight={type='linear', base=2}", {"type": "linear", "base": 2}),
        ("x=1\ny=2", "1\ny=2"),
        ("x=" + "[" * 5000, "[" * 5000),
        ("x=" + "9" * 5000, "9" * 5000),
    ],
)
def test_a_value_is_toml_or_else_bare_text(text, value):
    setting = parse(text).value
    assert setting == value
    assert type(setting) is type(value)


def test_sets_reach_tables_and_items(kd):
    document = kd("seed=2", "train.epochs=5", "losses[1].norm=l2", "losses[0].weight.type=linear", "data.batch_size=4")
    assert document.tree == {
        "seed": 2,
        "train": {"epochs": 5},
        "losses": [{"type": "kd", "weight": {"type": "linear"}}, {"type": "hidden", "norm": "l2"}],
        "data": {"batch_size": 4},
    }
    assert document.locate("losses[1].norm") == "-s losses[1].norm=l2"
    assert str(document.locate("losses[1].type")) == "kd.toml:7:1"
    assert str(document.locate("train")) == "kd.toml:2:1"
    assert document.locate("data") == "-s data.batch_size=4"


def test_the_last_one_wins(kd):
    assert kd("seed=2", "seed=3").tree["seed"] == 3


def test_a_whole_item_merges_like_a_table(kd):
    assert kd("losses[1]={scales={a=1}}").tree["losses"][1] == {"type": "hidden", "norm": "l1", "scales": {"a": 1}}


def test_another_type_drops_what_the_file_said(kd):
    document = kd("losses[1].type=kd")
    assert document.tree["losses"][1] == {"type": "kd"}
    assert document.dropped == ["losses[1]: type hidden -> kd; dropped norm (kd.toml:8)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.epochs", "'train.epochs' has no value; write it like train.epochs=5"),
        ("=3", "'' is not a key; write it like train.epochs or losses[1].temperature"),
        ("losses.1.norm=l2", "losses is a list; write losses[1].norm"),
        ("losses.norm=l2", "losses is a list; write losses[0].norm"),
        ("losses[7].norm=l2", "there is no losses[7]; losses has 2: losses[0] to losses[1]"),
        ("train[0]=1", "train is a table, not a list"),
        ("seed[0]=1", "seed is 1, not a list"),
        ("callbacks[0].type=x", "callbacks is nothing, not a list"),
        ("extends=a.toml", "a file extends another; the command line cannot"),
        ("seed=0xfffffffffffffffff", "integers have at most 64 bits"),
    ],
)
def test_malformed_settings(kd, text, message):
    with pytest.raises(ConfigError) as caught:
        kd(text)
    assert str(caught.value) == f"-s {text}: {message}"


def test_all_malformed_settings_are_told_at_once(kd):
    with pytest.raises(ConfigError) as caught:
        kd("a", "seed=2", "b")
    assert [problem.place for problem in caught.value.problems] == ["-s a", "-s b"]


def test_a_string_that_looks_like_a_number_is_told_how_to_quote(kd, fake):
    with pytest.raises(ConfigError) as caught:
        structure(kd("losses[0].tag=3", "losses[0].fused=no"), fake)
    assert [str(problem) for problem in caught.value.problems][-2:] == [
        "-s losses[0].fused=no: losses[0].fused: expected true or false, got the string 'no'",
        "-s losses[0].tag=3: losses[0].tag: expected a string, got 3; write losses[0].tag='\"3\"'",
    ]


@given(st.text(max_size=20) | st.from_regex(r"[a-z.\[\]0-2]{1,12}=[a-z0-9\[\]{}=\".]{0,8}", fullmatch=True))
def test_any_text_is_read_or_refused(text):
    with suppress(Mismatch):
        assert parse(text).keys
