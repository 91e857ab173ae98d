"""The grammar: what parses, into what, how it is spelled again, and every mistake of spelling."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbrew.errors import SelectorError
from hookbrew.taps import Selector, parse
from hookbrew.taps.selector import PORTS, Range, Segment

numbers = st.integers(-99, 99)
steps = st.none() | numbers.filter(bool)
ranges = st.builds(Range, st.none() | numbers, st.none() | numbers, steps)
lists = st.lists(numbers, min_size=2, max_size=4).map(tuple)
words = st.text(
    st.characters(blacklist_characters=".[]{}*?#:,", blacklist_categories=("Z", "C")), min_size=1, max_size=5
)
pieces = st.one_of(
    words, st.sampled_from("*?"), st.lists(words, min_size=1, max_size=3).map(lambda w: f"{{{','.join(w)}}}")
)
globs = st.just("**") | st.lists(pieces, min_size=1, max_size=3).map("".join).filter(lambda glob: "**" not in glob)
segments = st.builds(Segment, globs, st.lists(numbers | ranges | lists, max_size=2).map(tuple))
selectors = st.builds(
    Selector,
    path=st.lists(segments, max_size=4).map(tuple),
    call=st.none() | numbers | ranges,
    port=st.sampled_from(PORTS),
    picks=st.lists(words | numbers, max_size=3).map(tuple),
)


@settings(deadline=None)  # never assert a time
@given(selectors)
def test_the_canonical_spelling_parses_to_the_same(selector):
    assert parse(str(selector)) == selector
    assert str(parse(str(selector))) == str(selector)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", Selector((Segment("a"),))),
        ("a.layer.0", Selector((Segment("a"), Segment("layer"), Segment("0")))),
        ("layer[-1]", Selector((Segment("layer", (-1,)),))),
        ("h[::2]", Selector((Segment("h", (Range(step=2),)),))),
        ("h[1:]", Selector((Segment("h", (Range(start=1),)),))),
        ("h[*][:]", Selector((Segment("h", (Range(), Range())),))),
        ("layer[0,3,-1]", Selector((Segment("layer", ((0, 3, -1),)),))),
        ("**.{query,value}", Selector((Segment("**"), Segment("{query,value}")))),
        (":out.logits", Selector(picks=("logits",))),
        (":in", Selector(port="in")),
        ("a.output:args[1].x", Selector((Segment("a"), Segment("output")), port="args", picks=(1, "x"))),
        ("a#-1", Selector((Segment("a"),), call=-1)),
        ("a#*", Selector((Segment("a"),), call=Range())),
        ("a#1::out[0]", Selector((Segment("a"),), call=Range(1), picks=(0,))),
        ("a#::2:in", Selector((Segment("a"),), call=Range(step=2), port="in")),
        ("logits", Selector()),
        ("logits:out", Selector((Segment("logits"),))),
    ],
)
def test_parsing(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("layer[ 0, 3 ,5 ]", "layer[0,3,5]"),
        ("layer[:]", "layer[*]"),
        ("layer[0:6:]", "layer[0:6]"),
        ("layer[007]", "layer[7]"),
        ("a:out", "a"),
        ("a: in", "a:in"),
        ("a:out[0]", "a:out[0]"),
        ("a#:", "a#*"),
        ("logits", ":out"),
        ("logits:out", "logits:out"),
        ("a.logits:out", "a.logits"),
        ("logits#0", "logits#0"),
    ],
)
def test_canonical_spelling(text, canonical):
    assert str(parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "many"),
    [
        *((text, False) for text in ("a", "a.0", "a[0]", "a[-1]#2", "a#0:in", ":out.logits", "logits", "a:args[1]")),
        *((text, True) for text in ("a[*]", "*", "a?", "**", "a[0:1]", "a[0,1]", "{a}", "{a,b}.c", "a#*", "a#0:1")),
    ],
)
def test_the_spelling_decides_between_tensor_and_list(text, many):
    assert parse(text).many is many


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it is empty; the model's own output is ':out'"),
        (" ", "it is empty; the model's own output is ':out'"),
        ("a b", "'a b' is not a name or a glob (* ? {a,b}), followed by [index]"),
        ("a..b", "a name is missing beside '.' or before '['; a path starts with a child of the model"),
        ("[0]", "a name is missing beside '.' or before '['; a path starts with a child of the model"),
        ("a.", "a name is missing beside '.' or before '['; a path starts with a child of the model"),
        ("a[", "a bracket is not closed"),
        ("a]", "a bracket is not closed"),
        ("a[0]b", "'a[0]b' is not a name or a glob (* ? {a,b}), followed by [index]"),
        ("a[x]", "[x] is not an index: a number, a slice a:b:c, a list 0,3,5 or *"),
        ("a[0,]", "[0,] is not an index: a number, a slice a:b:c, a list 0,3,5 or *"),
        ("a[]", "[] is not an index: a number, a slice a:b:c, a list 0,3,5 or *"),
        ("a[::0]", "the step of ::0 is 0"),
        ("a#x", "'#x' is not a call: a number, a slice a:b:c or *"),
        ("a#", "'#' is not a call: a number, a slice a:b:c or *"),
        ("a#::0", "the step of ::0 is 0"),
        ("a:", "the port after ':' is missing; one of: out, in, args, kwargs, attn, scores, q, k, v"),
        ("a:outt", "unknown port 'outt'; did you mean 'out'?"),
        ("a:b:c", "unknown port 'b'; one of: args, attn, in, k, kwargs, out, q, scores, v"),
        ("a:out[0:1]", "'[0:1]' is not a pick: .key or [i] after the port"),
        ("a:out.x.", "'.' is not a pick: .key or [i] after the port"),
        ("h{0..11}", "'h{0..11}' is not a glob; a range is a slice of a container: layer[0:12]"),
        ("a.b**", "'**' stands alone between dots, not in 'b**'"),
        ("a.{b,c", "a brace in '{b,c' is not closed"),
        ("a.{b,}", "'{b,}' is not a name or a glob (* ? {a,b}), followed by [index]"),
        ("a:out#0", "the call stands before the port: path#call:port"),
        ("a#0#1", "expected path[index]#call:port.key"),
    ],
)
def test_mistakes_of_spelling(text, problem):
    with pytest.raises(SelectorError, match=f"^{re.escape(f'selector {text!r}: {problem}')}$"):
        parse(text)


def test_a_selector_is_a_string():
    with pytest.raises(SelectorError, match=r"^a selector is a string, not int \(3\)$"):
        parse(3)
