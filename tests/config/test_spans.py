"""The key locator, against tomllib on documents written by tomli_w and by hand."""

import tomllib

import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from hookbrew.config.keys import dotted
from hookbrew.config.spans import locate

names = st.text(st.characters(codec="utf-8"), max_size=5) | st.sampled_from(["a", "b", "a.b", "x-y", "1"])
scalars = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.datetimes()
    | st.dates()
    | st.times()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=12
)
trees = st.dictionaries(names, values, max_size=4)


def paths(value, keys=()):
    if keys:
        yield keys
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield from paths(inner, (*keys, key))


@given(trees, st.booleans())
def test_every_path_has_a_place_that_shows_its_key(tree, multiline):
    text = tomli_w.dumps(tree, multiline_strings=multiline).replace("\r\n", "\n")
    found = locate(text, "x.toml")
    assert set(found) == set(paths(tomllib.loads(text)))
    lines = text.split("\n")
    for keys, place in found.items():
        assert place.text == lines[place.line - 1]
        shown = place.text[place.column - 1 : place.column - 1 + place.width]
        assert shown
        if isinstance(keys[-1], str) and not shown.startswith("["):
            assert shown.endswith(dotted(keys[-1:]))


HAND = '''\
a . "b c" . d = 1  # a.x = 2
s = """ two = 1
[no] = """
t = \'\'\' it's
k = 1\'\'\'\'
q = "# \\" = ["
d = 1979-05-27 07:32:00 # when
list = [ # first
  1, "a]", { in = [ {deep = 1}, ] }, # c
  [2,
   3],
]
[ x . 'y z' ]
p = {}
[[x.many]]
a = 1
[[x.many]]
[x.many.sub]
e = true
[[x.many.sub2]]
f = 1.5
[[x.many]]
[[x.many.sub2]]
'''

PLACES = {
    "a": (1, 1, 1),
    'a."b c"': (1, 1, 9),
    'a."b c".d': (1, 1, 13),
    "s": (2, 1, 1),
    "t": (4, 1, 1),
    "q": (6, 1, 1),
    "d": (7, 1, 1),
    "list": (8, 1, 4),
    "list[0]": (9, 3, 1),
    "list[1]": (9, 6, 4),
    "list[2]": (9, 12, 24),
    "list[2].in": (9, 14, 2),
    "list[2].in[0]": (9, 21, 10),
    "list[2].in[0].deep": (9, 22, 4),
    "list[3]": (10, 3, 3),
    "list[3][0]": (10, 4, 1),
    "list[3][1]": (11, 4, 1),
    "x": (13, 1, 13),
    'x."y z"': (13, 1, 13),
    'x."y z".p': (14, 1, 1),
    "x.many": (15, 1, 10),
    "x.many[0]": (15, 1, 10),
    "x.many[0].a": (16, 1, 1),
    "x.many[1]": (17, 1, 10),
    "x.many[1].sub": (18, 1, 12),
    "x.many[1].sub.e": (19, 1, 1),
    "x.many[1].sub2": (20, 1, 15),
    "x.many[1].sub2[0]": (20, 1, 15),
    "x.many[1].sub2[0].f": (21, 1, 1),
    "x.many[2]": (22, 1, 10),
    "x.many[2].sub2": (23, 1, 15),
    "x.many[2].sub2[0]": (23, 1, 15),
}


def test_a_document_with_everything_that_looks_like_a_key():
    assert set(paths(tomllib.loads(HAND))) == set(locate(HAND, "x"))
    assert {dotted(k): (p.line, p.column, p.width) for k, p in locate(HAND, "x").items()} == PLACES


def test_a_table_is_where_its_own_header_is():
    found = locate("[a.b]\nx = 1\n[a]\ny = 2\n", "x")
    assert found["a",].line == 3
    assert found["a", "b"].line == 1
