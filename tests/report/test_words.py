"""How numbers, times and names become words of the page; and what no training of a second leaves behind."""

import re
from datetime import UTC, datetime, timedelta

import pytest

from hookbrew.report.compare import differences
from hookbrew.report.curves import Curve, Stretch, best, falls, grouped, shown
from hookbrew.report.head import lasted, size
from hookbrew.report.pictures import PICTURES
from hookbrew.report.plot import MOST, Plot, drawn
from hookbrew.report.read import labels, read


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.123456, "0.1235"),
        (1.0, "1"),
        (-2.5, "-2.5"),
        (12345.6, "12,346"),
        (0.00012, "0.00012"),
        (0.000012, "1.200e-05"),
        (1e9, "1.000e+09"),
        (None, "not finite"),
    ],
)
def test_numbers(value, text):
    assert shown(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59, "59 s"), (61, "1 min 01 s"), (3600 * 26 + 65, "26 h 01 min"), (-1, "")]
)
def test_durations(seconds, text):
    start = datetime(2026, 1, 1, tzinfo=UTC)
    assert lasted(start, start + timedelta(seconds=seconds)) == text
    assert lasted(None, start) == lasted(start, None) == ""


@pytest.mark.parametrize(
    ("count", "text"), [(612, "612 bytes"), (1536, "1.5 KiB"), (90 * 2**20, "90 MiB"), (3 * 2**30, "3.00 GiB")]
)
def test_sizes(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    ("name", "lowest"),
    [
        *(("loss", True), ("loss/kd_ce", True), ("eval/accuracy", False), ("eval/trec/f1", False)),
        *(("eval/sms/loss", True), ("eval/calibration_error", True), ("eval/top_5_error", True)),
        *(("lr", None), ("grad_norm", None), ("weight/loss", None), ("gate/mean", None), ("eval", None)),
    ],
)
def test_which_number_is_the_best(name, lowest):
    assert falls(name) is lowest
    top = best(name, Curve((((1, 2.0), (2, 1.0), (3, 1.0), (4, None), (5, 3.0), (6, 3.0)),)))
    assert top == {True: (2, 1.0), False: (5, 3.0), None: None}[lowest]


def test_groups():
    names = ["loss", "weight/a", "eval/x", "temperature/a", "lr/a", "lr", "gate/b", "loss/a", "grad_norm", "weight"]
    assert grouped(names) == {
        "Losses": ["loss", "loss/a"],
        "Evaluation": ["eval/x"],
        "Learning rate, weights and options": ["lr/a", "lr", "temperature/a", "weight/a"],
        "Gradient and speed": ["grad_norm"],
        "Others": ["gate/b", "weight"],
    }


def test_labels_are_the_shortest_that_differ(tmp_path):
    folders = [tmp_path / name for name in ("a/x/toy", "b/x/toy", "a/x/other")]
    assert labels(folders) == ["a/x/toy", "b/x/toy", "other"]


def test_differences():
    first = {"lr": 0.1, "losses": [{"type": "a", "on": [1, 2]}], "same": True, "empty": {}}
    second = {"lr": 0.1, "losses": [{"type": "a", "on": [1, 3]}, {"type": "b"}], "same": True}
    assert differences([first, second]) == [
        ("losses[0].on", ["[1, 2]", "[1, 3]"]),
        ("empty", ["{}", None]),
        ("losses[1].type", [None, '"b"']),
    ]
    assert differences([{"on": True}, {"on": "true"}]) == [("on", ["true", '"true"'])]


def test_stages_without_room_for_their_names_have_numbers():
    curve = Curve((((1, 1.0), (50, 2.0)), ((51, 1.0), (100, 2.0))))

    def texts(*names):
        stages = [Stretch(names[0], 0, 50), Stretch(names[1], 50, 100)]
        (svg,) = drawn([Plot("loss", "loss", {0: curve}, 100, stages)])
        return [line.rpartition("</text>")[0].rpartition(">")[2] for line in svg.splitlines() if "</text>" in line]

    assert texts("warm", "main")[-2:] == ["warm", "main"]
    assert texts("warm", "a-name-of-many-letters-and-more-of-them")[-2:] == ["1", "2"]


def test_a_name_is_no_formula():
    (svg,) = drawn([Plot("a", "$x^2$<b>", {0: Curve((((1, 1.0),),))}, 1)])
    assert re.search(r"<text[^>]*>\$x\^2\$&lt;b&gt;</text>", svg)  # not only in a comment


@pytest.mark.parametrize(
    "values",
    [(1e308, -1e308), (1e308, 1e308), (5e-324, 1.0), (1e-320, 2e-320), (0.0, 0.0), (1.0, None), (None, None)],
)
@pytest.mark.parametrize("spread", [True, False])
def test_any_numbers_can_be_drawn(values, spread):
    (svg,) = drawn([Plot("a", "a", {MOST - 1: Curve((tuple(enumerate(values)),))}, 10**15, spread=spread)])
    assert svg.startswith("<svg viewBox=")
    assert "var(--c6)" in svg
    assert "nan" not in svg
    assert "inf" not in svg


def test_a_steps_number_that_is_none(fake, report):
    folder = fake("a", [{"step": 10**400, "loss": 1.0}, {"step": 2, "loss": 1.0}], {"status": "done", "step": 10**300})
    assert report(folder).exit_code == 0
    (run,) = read([folder])
    assert (run.steps, run.parts[0].rows.unread) == (2, 1)


def test_a_file_outside_the_folder_is_not_read(fake):
    fake("b", [{"step": 1, "loss": 9.0}])
    for path in ("../b/metrics.jsonl", "/etc/passwd"):
        name = f"a{len(path)}"
        folder = fake(name, [{"step": 1, "loss": 1.0}], config=f"[[callbacks]]\ntype = 'metrics'\nfile = '{path}'\n")
        assert read([folder])[0].parts[0].rows.rows == ({"step": 1, "loss": 1.0},)


def test_of_many_images_the_newest(fake, report, parse):
    folder = fake("a", [{"step": 1, "loss": 1.0}])
    (folder / "images").mkdir()
    for number in range(PICTURES + 2):
        (folder / f"images/{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert report(folder).exit_code == 0
    page = parse(folder / "report.html")
    assert len(page.named("img")) == PICTURES
    assert "2 older images are in the folder only." in page.text
