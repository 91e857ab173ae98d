"""Keys as text and as tuples."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookbrew.config.keys import dotted, split

names = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(["losses", "a-b", "1", "a.b", "[0]", 'q"'])


@given(st.tuples(names), st.lists(names | st.integers(0, 99), max_size=4))
def test_split_undoes_dotted(first, rest):
    keys = (*first, *rest)
    assert split(dotted(keys)) == keys


def test_a_key_is_written_as_users_write_it():
    assert dotted(("losses", 1, "weight", "a b", 0)) == 'losses[1].weight."a b"[0]'
    assert dotted(()) == ""


def test_literal_names_are_read_too():
    assert split("data.'a.b'[2]") == ("data", "a.b", 2)


@pytest.mark.parametrize(
    "text", ["", ".", "a.", ".a", "a..b", "[0]", "a.[0]", "a[x]", "a[-1]", "a b", "a[1", 'a."b', "a]"]
)
def test_malformed_keys_are_refused(text):
    with pytest.raises(ValueError, match=r"is not a key; write it like train.epochs or losses") as caught:
        split(text)
    assert str(caught.value).startswith(repr(text))
