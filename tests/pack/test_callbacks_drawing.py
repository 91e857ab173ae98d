"""The drawings of maps: names that can be read, numbers that are there, and no text on top of another."""

import math
import re

import pytest
import torch
from matplotlib.text import Text

from hookbrew import drawing
from hookbrew.drawing import Side, attention, cut, shortened, similarity

BERT = "bert.encoder.layer.{}"
SELF = "bert.encoder.layer.{}.attention.self"
LONG = "model.a_rather_long_name_of_a_container.layers_of_the_decoder.{}.self_attention.module"


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a.layer.0", "a.layer.1"], ("a.layer.*", ["0", "1"])),
        (["a.0.b.self", "a.1.b.self"], ("a.*.b.self", ["0", "1"])),
        (["layer.0:in", "layer.0", "layer.1"], ("layer.*", ["0:in", "0", "1"])),
        (["a", "b"], ("", ["a", "b"])),
        (["a.0", "b.0.c"], ("", ["a.0", "b.0.c"])),
        (["a.b.c"], ("a.b.c", ["0"])),
        (["a#0", "a#1"], ("", ["a#0", "a#1"])),
        (["a", "a.b"], ("", ["a", "a.b"])),
        (["0.a", "1.a"], ("*.a", ["0", "1"])),
        (["a.b", "a.b"], ("a.b", ["0", "1"])),
    ],
)
def test_what_names_have_in_common_is_said_once(paths, expected):
    assert shortened(paths) == expected


def test_long_names_lose_their_middle():
    assert cut("abcdefghij", 10) == "abcdefghij"
    assert cut("abcdefghijk", 10) == "abcde…hijk"
    assert len(cut("x" * 100, 22)) == 22


@pytest.fixture
def figures(monkeypatch):
    """The figures behind the pictures that are made."""
    seen, taken = [], drawing.taken

    def look(figure, title, text):
        seen.append(figure)
        return taken(figure, title, text)

    monkeypatch.setattr(drawing, "taken", look)
    return seen


def boxes(figure):
    """What is written, and how much of it is on other texts or beside the sheet, by pixels."""
    renderer = figure.canvas.get_renderer()
    found = {}
    for number, text in enumerate(figure.findobj(Text)):
        if text.get_text() and text.get_visible():
            box = text.get_window_extent(renderer)
            if box.width > 1:
                found[f"{number} {text.get_text()!r}"] = box
    return found


def require_legible(figure):
    """No two texts meet, and all of them lie on the sheet; ticks at slanted labels are asked for their ends alone."""
    found, (width, height) = boxes(figure), figure.canvas.get_width_height()
    slanted = {f"{n} {t.get_text()!r}" for n, t in enumerate(figure.findobj(Text)) if t.get_rotation() == 60}
    assert len(found) > 5
    for name, box in found.items():
        assert box.x0 >= -1, name
        assert box.y0 >= -1, name
        assert box.x1 <= width + 1, name
        assert box.y1 <= height + 1, name
        for other, beside in found.items():
            if name < other and not {name, other} & slanted:
                across = min(box.x1, beside.x1) - max(box.x0, beside.x0)
                along = min(box.y1, beside.y1) - max(box.y0, beside.y0)
                assert min(across, along) <= 1, (name, other)


def side(name, path, number, length=None):
    maps = [torch.rand(length, length).softmax(-1) for _ in range(number)] if length else ()
    return Side(name, [path.format(place) for place in range(number)], maps)


@pytest.mark.parametrize("path", [BERT, SELF, LONG, "{}"])
@pytest.mark.parametrize("sizes", [(1, 1), (3, 12), (2, 1), (13, 13), (6, 24), (24, 48)])
def test_similarity_is_legible(figures, path, sizes):
    student, teacher = side("student", path, sizes[0]), side("teacher large", path, sizes[1])
    values = torch.rand(sizes)
    picture = similarity(student, teacher, values, title="Layer similarity, step 1,234,000", over="12,345 tokens")
    (figure,) = figures
    require_legible(figure)
    written = [text for text in boxes(figure) if re.search(r" '[01]\.\d\d'$", text)]
    assert len(written) == (values.numel() if values.numel() <= drawing.CELLS else 0)
    assert picture.pixels.shape[1::-1] == figure.canvas.get_width_height()


def test_names_of_different_lengths(figures):
    student = Side("student", ["stage1.block.conv_with_long_name", "stage2.other_block.bn2"])
    teacher = Side("teacher", ["layer1.0.downsample.very_long_name_indeed_here", "layer2", "layer3.1", "layer4"])
    similarity(student, teacher, torch.rand(2, 4), title="Layer similarity, step 5", over="12 samples")
    require_legible(figures[0])


def test_what_is_no_number_is_said(figures):
    values = torch.tensor([[math.nan, 0.25], [math.nan, math.nan]])
    student, teacher = side("student", BERT, 2), side("teacher", BERT, 2)
    picture = similarity(student, teacher, values, title="t", over="2 tokens")
    assert sum("'-'" in text for text in boxes(figures[0])) == 3
    assert b"2 student layers with 2 teacher layers, over 2 tokens. Nearest: 0 to 1 (0.25)." in picture.png
    nothing = similarity(student, teacher, torch.full((2, 2), math.nan), title="t", over="2 tokens")
    assert b"No layer varies." in nothing.png


def test_the_nearest_is_framed(figures):
    from matplotlib.patches import Rectangle

    values = torch.tensor([[0.1, 0.9, 0.3], [0.7, 0.2, 0.6]])
    similarity(side("student", BERT, 2), side("teacher", BERT, 3), values, title="t", over="2 tokens")
    axes = figures[0].axes[0]
    framed = [patch.get_xy() for patch in axes.patches if isinstance(patch, Rectangle)]
    assert framed == [(0.5, -0.5), (-0.5, 0.5)]
    assert axes.images[0].get_clim() == (0, 1)


@pytest.mark.parametrize("path", [SELF, LONG])
@pytest.mark.parametrize(("sizes", "length"), [((1, 1), 5), ((3, 12), 14), ((7, 2), 128), ((1, 24), 1)])
def test_attention_is_legible(figures, path, sizes, length):
    sides = [side("student", path, sizes[0], length), side("teacher", path, sizes[1], length + 3)]
    attention(sides, title="Attention, mean over heads, first sample, step 1,234,000")
    (figure,) = figures
    require_legible(figure)
    *maps, _ = figure.axes
    assert len(maps) == sum(sizes)
    assert len({tuple(round(part, 6) for part in axes.get_position().size) for axes in maps}) == 1, "one size"
    top = max(float(one.max()) for side in sides for one in side.maps)
    for axes in maps:
        assert axes.images[0].get_clim() == (0, pytest.approx(top)), "one scale"


def test_attention_of_nothing():
    """All zeros, and numbers that are none."""
    maps = [torch.zeros(3, 3), torch.full((3, 3), math.nan)]
    picture = attention([Side("student", ["a.0", "a.1"], maps)], title="t")
    assert b"student: 2 layers, 3 tokens. The highest of all is 0.00." in picture.png
