"""The page of real runs: its numbers against the files, read here once more; and how whole and safe it is."""

import base64
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import zlib
from datetime import datetime

import pytest

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def told(value):
    """The number in a cell: `0.1234 at 7` is 0.1234."""
    return float(value.split(" at ")[0].replace(",", ""))


def near(value):
    return pytest.approx(value, rel=1e-3)


@pytest.fixture(scope="module")
def made(land, tmp_path_factory, report, parse):
    """made("toy", "failed"): the page of runs of `land`, made once."""
    known = {}

    def make(*names):
        if names not in known:
            target = tmp_path_factory.mktemp("page") / "page.html"
            done = report(*(land / name for name in names), "--to", target)
            assert done.exit_code == 0, done.output
            assert done.stdout == f"{target}: {', '.join(names)}\n"
            known[names] = parse(target)
        return known[names]

    return make


@pytest.mark.parametrize("name", ["toy", "warmer"])
def test_the_table_has_the_numbers_of_the_file(made, land, name):
    cells = made("toy", "warmer").results()[name]
    rows = lines(land / name)
    for key, best in [("loss", min), ("loss/kd_ce", min), ("loss/hidden_mse", min), ("eval/accuracy", max)]:
        values = [(row["step"], row[key]) for row in rows if key in row]
        assert told(cells[f"last {key}"]) == near(values[-1][1])
        top = best(value for _, value in values)
        assert told(cells[f"best {key}"]) == near(top)
        assert cells[f"best {key}"].endswith(f" at {next(step for step, value in values if value == top)}")
    speeds = [row["samples_per_second"] for row in rows if "samples_per_second" in row]
    assert told(cells["samples / s"]) == pytest.approx(statistics.median(speeds), abs=0.06)
    assert cells["steps"] == "12"
    assert cells["numbers in final/"] == str(6 * 8 + 8 + 8 * 3 + 3)
    (file,) = (land / name / "final").iterdir()
    assert cells["size on disk"] == f"{file.stat().st_size} bytes"


def test_the_best_evaluation_is_marked_and_no_loss_is(made, land):
    page = made("toy", "warmer")
    best = {n: max(row.get("eval/accuracy", 0) for row in lines(land / n)) for n in ("toy", "warmer")}
    marked = [tag for tag in page.named("td") if tag.get("class") == "first"]
    assert len(marked) == sum(value == max(best.values()) for value in best.values())
    assert not [tag for tag in made("toy").named("td") if tag.get("class") == "first"]


def test_every_number_of_the_file_is_on_the_page(made, land):
    page = made("toy")
    plots = [tag["aria-label"] for tag in page.named("div") if tag.get("role") == "img"]
    names = {key for row in lines(land / "toy") for key in row} - {"step", "epoch"}
    steady = {"weight/kd_ce", "weight/hidden_mse"}
    assert {plot.split(" over steps. ")[0] for plot in plots} == names - steady
    assert "The same all the time: weight/kd_ce 1, weight/hidden_mse 0.5." in " ".join(page.text.split())
    assert {"temperature/kd_ce", "lr", "grad_norm"} <= names


def test_a_setting_in_which_runs_differ_is_drawn(made):
    page = made("toy", "warmer")
    drawn = [tag["aria-label"] for tag in page.named("div") if tag.get("role") == "img"]
    assert [plot for plot in drawn if plot.startswith("weight/")] == [
        "weight/hidden_mse over steps. toy: last 0.5; warmer: last 2"
    ]


def places(text, name, colour):
    """For the plot of a number, where each piece of a line has its points: lists of (x, y)."""
    (figure,) = [part for part in re.findall(r"<figure>.*?</figure>", text, re.DOTALL) if f"<b>{name}</b>" in part]
    drawn = re.findall(r'<path d="([^"]*)" clip-path="[^"]*" style="([^"]*)"', figure)
    pieces = [piece for d, style in drawn if f"stroke: var({colour})" in style for piece in d.split("M")[1:]]
    return [[tuple(map(float, point)) for point in re.findall(r"([\d.]+) ([\d.]+)", piece)] for piece in pieces]


def test_the_lines_lie_where_the_numbers_are(land, tmp_path, report):
    target = tmp_path / "page.html"
    report(land / "toy", land / "warmer", "--to", target)
    for name, colour in (("toy", "--c0"), ("warmer", "--c1")):
        values = [row["loss/hidden_mse"] for row in lines(land / name) if "loss" in row]
        (piece,) = places(target.read_text(), "loss/hidden_mse", colour)
        assert len(piece) == len(values) == 12
        xs, ys = zip(*piece, strict=True)
        assert statistics.correlation(xs, range(12)) == pytest.approx(1)
        assert statistics.correlation(ys, values) == pytest.approx(-1)  # down the page is up


def test_the_head(made, land):
    text = " ".join(made("toy").text.split())
    env = json.loads((land / "toy/env.json").read_text())
    status = json.loads((land / "toy/status.json").read_text())
    assert f"torch {env['packages']['torch']}" in text
    assert "Plugins standard 0.1.0" in text
    assert f"Began {env['started'][:10]} {env['started'][11:19]} UTC" in text
    assert f"Ended {status['time'][:10]} {status['time'][11:19]} UTC" in text
    seconds = (datetime.fromisoformat(status["time"]) - datetime.fromisoformat(env["started"])).total_seconds()
    assert f"Took {seconds:.0f} s " in text
    assert "Command " in text


def test_stages_follow_one_another(made, land):
    page = made("staged")
    cells = page.results()
    assert list(cells) == ["staged", "warm", "main"]
    assert [cells[name]["steps"] for name in cells] == ["14", "6", "8"]
    for stage in ("warm", "main"):
        losses = [row["loss"] for row in lines(land / "staged" / stage) if "loss" in row]
        assert told(cells[stage]["last loss"]) == near(losses[-1])
    lowest = min((row["loss"], row["step"]) for row in lines(land / "staged/main") if "loss" in row)
    assert cells["main"]["best loss"].endswith(f" at {lowest[1]}")
    assert cells["staged"]["best loss"].endswith(f" at {lowest[1] + 6}")  # of the last stage, on the axis of all
    assert cells["warm"]["last loss/kd_ce"] == "-"
    assert "Stages 1: warm (6 steps), 2: main (8 steps)" in " ".join(page.text.split())
    svg = (page.text.count("warm"), page.text.count("main"))
    assert min(svg) > 5  # the names are above every plot


def test_a_failed_run_tells_why(made):
    page = made("failed")
    assert "RuntimeError: the disk of <b>samples</b> & more is gone" in page.text
    assert page.results()["failed"]["status"] == "failed"
    assert page.results()["failed"]["size on disk"] == "-"
    assert not page.named("b") or "samples" not in str(page.named("b"))


def test_a_killed_run(made, land, tmp_path, report, parse):
    page = made("killed")
    assert page.results()["killed"]["status"] == "running"
    assert "it is under way, or its process was killed" in page.text
    assert "Steps 3 of 12" in " ".join(page.text.split())
    half = tmp_path / "half"
    shutil.copytree(land / "killed", half)
    with (half / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "epoch": 1, "lo')
    assert report(half).exit_code == 0
    page = parse(half / "report.html")
    assert "Left out: 1 line of the metrics that could not be read." in page.text
    assert page.results()["half"]["steps"] == "3"


def test_the_configuration(made, land):
    page = made("toy", "warmer")
    assert (land / "toy/resolved.toml").read_text() in page.text
    table = {row[0]: row[1:] for row in page.tables[1][1:]}
    assert table.keys() == {"output", "losses[1].weight", "optimizer.lr"}
    assert table["losses[1].weight"] == ["0.5", "2.0"]
    assert table["optimizer.lr"] == ["0.01", "0.03"]
    assert page.named("details") == [{"open": None}, {}, {}]
    assert len(made("toy").tables) == 1


def test_the_page_needs_nothing_else(made):
    """No script, no address but the two names of XML, and every id once."""
    page = made("toy", "staged", "failed")
    assert not page.named("script")
    for _, attributes in page.tags:
        assert not {"src", "href"} & attributes.keys() or attributes["src"].startswith("data:")
        assert all(value.startswith("#") for key, value in attributes.items() if key == "xlink:href")
        assert not [key for key in attributes if key.startswith("on")]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert ids
    assert len(ids) == len(set(ids))
    used = re.findall(r"url\(#(\w+)\)", str(page.tags))
    assert used
    assert {*used} <= {*ids}
    assert page.named("html") == [{"lang": "en"}]
    (policy,) = [tag["content"] for tag in page.named("meta") if "http-equiv" in tag]
    assert policy.startswith("default-src 'none';")


def test_colours_are_the_page_s_own(land, tmp_path, report):
    """So that dark, light and paper each have theirs; and two runs differ in colour and in pattern."""
    target = tmp_path / "page.html"
    report(land / "toy", land / "warmer", "--to", target)
    text = target.read_text()
    style, _, body = text.partition("</style>")
    for scheme in ("@media (prefers-color-scheme: dark)", "@media print", "@media (max-width: 30rem)"):
        assert scheme in style
    assert set(re.findall(r"(?:stroke|fill): ([^;\"]+)", body)) <= {
        *("none", "var(--ink)", "var(--line)", "var(--c0)", "var(--c1)"),
    }
    used = set(re.findall(r"var\((--\w+)\)", text))
    for block in style.split("@media (prefers-color-scheme: dark)")[:2]:
        assert used <= set(re.findall(r"(--\w+):", block))
    legend = body.partition('<ul class="legend"')[2].partition("</ul>")[0]
    assert len(set(re.findall(r"stroke-dasharray: ([^\"]*)", legend))) == 2


def test_every_plot_has_words_and_axes(made):
    page = made("toy", "warmer")
    labels = [tag["aria-label"] for tag in page.named("div") if tag.get("role") == "img"]
    assert all("toy: last " in label and "warmer: last " in label for label in labels)
    drawings = [tag for tag in page.named("svg") if tag.get("class") != "key"]
    assert len(drawings) == len(labels)
    assert all(tag["aria-hidden"] == "true" for tag in drawings)
    for words in ("step", "learning rate", "samples / s", "norm", "loss (log)", "temperature"):
        assert words in page.text


def test_the_file_of_metrics_that_the_configuration_names(fake, report, parse):
    folder = fake("a", [{"step": 1, "loss": 5.0}], config='[[callbacks]]\ntype = "metrics"\nfile = "logs/m.jsonl"\n')
    (folder / "logs").mkdir()
    (folder / "metrics.jsonl").rename(folder / "logs/m.jsonl")
    assert report(folder).exit_code == 0
    assert parse(folder / "report.html").results()["a"]["last loss"] == "5"


def test_callbacks_that_were_disabled(fake, report, parse):
    told = {"callback": "tensorboard", "event": "log", "step": 7, "error": "OSError: <full>"}
    for name, degraded in {"a": [told, 3], "b": {"x": 1}}.items():
        folder = fake(name, [{"step": 9, "loss": 5.0}], {"status": "done", "step": 9, "degraded": degraded})
        assert report(folder).exit_code == 0
        text = parse(folder / "report.html").text
        sentence = "The callback tensorboard was disabled in event log at step 7: OSError: <full>."
        assert (sentence in text) is (name == "a")


def test_images_newest_first(fake, report, parse):
    folder = fake("a", [{"step": 1, "loss": 5.0}])
    (folder / "images/maps").mkdir(parents=True)
    for age, name in enumerate(["new.png", "maps/older.png", "oldest.PNG", "no.png", "text.txt"]):
        path = folder / "images" / name
        path.write_bytes(b"<svg onload=x>" if name == "no.png" else PNG)
        os.utime(path, (10**9 - age, 10**9 - age))
    assert report(folder).exit_code == 0
    page = parse(folder / "report.html")
    assert [tag["alt"] for tag in page.named("img")] == [
        *("images/new.png of run a", "images/maps/older.png of run a", "images/oldest.PNG of run a"),
    ]
    kind, _, data = page.named("img")[0]["src"].partition(",")
    assert (kind, base64.b64decode(data)) == ("data:image/png;base64", PNG)
    assert "images/no.png is no PNG, whatever its name says." in page.text


def chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def captioned(title, text, *more):
    """A PNG of one pixel that says what is to be seen, as matplotlib writes it."""
    given = {"Title": title, "Description": text}
    texts = [chunk(b"tEXt", f"{key}\0{value}".encode("latin-1")) for key, value in given.items()]
    return PNG[:33] + b"".join([*texts, *more]) + PNG[33:]


def test_captions_of_images(fake, report, parse):
    folder = fake("a", [{"step": 1, "loss": 5.0}])
    (folder / "images").mkdir()
    (folder / "images/one.png").write_bytes(captioned("Layer similarity, step 5", "Nearest: <0> to 2 (0.91)."))
    assert report(folder).exit_code == 0
    page = parse(folder / "report.html")
    (tag,) = page.named("img")
    assert tag["alt"] == "Layer similarity, step 5 of run a. Nearest: <0> to 2 (0.91)."
    assert "Layer similarity, step 5 Nearest: <0> to 2 (0.91). images/one.png" in " ".join(page.text.split())
    assert [style for style in (figure.get("style") for figure in page.named("figure")) if style] == ["flex: 0 1 1px"]


@pytest.mark.parametrize("cut", [9, 20, 35, 41, 60, 90])
def test_an_image_that_is_not_whole(fake, report, parse, cut):
    folder = fake("a", [{"step": 1, "loss": 5.0}])
    (folder / "images").mkdir()
    (folder / "images/one.png").write_bytes(captioned("Layers", "Nearest", chunk(b"tEXt", b"odd"))[:cut])
    assert report(folder).exit_code == 0
    assert len(parse(folder / "report.html").named("img")) == 1


def test_what_comes_from_files_is_escaped(fake, report, parse):
    bad = "<script>alert('1')</script>\"&"
    row = {"step": 1, "epoch": 1, f"loss/{bad}": 1.0, "loss": 2.0, f"weight/{bad}": 1.0, f"eval/{bad}": None}
    status = {"status": bad, "reason": bad, "step": 1, "stage": bad}
    env = {"packages": {bad: bad}, "plugins": {bad: bad}, "platform": bad, "argv": [bad], "started": bad}
    config = f"\"x\" = '''{bad}'''\n"
    name = bad.replace("/", "|")
    folders = [fake(f"{n}/{name}", [row], status, config + f"n = '{n}{bad[:8]}'\n", env) for n in "ab"]
    (folders[0] / "images").mkdir()
    (folders[0] / f"images/{name}.png").write_bytes(captioned(bad, bad))
    (folders[1] / "images").mkdir()
    (folders[1] / f"images/{name}.png").write_bytes(b"")
    for runs in (folders[:1], folders):
        target = folders[0] / "page.html"
        assert report(*runs, "--to", target).exit_code == 0
        page = parse(target)
        assert "script" not in {tag for tag, _ in page.tags}
        assert page.text.count(bad) > 10
        assert "<script" not in target.read_text()


def test_what_is_not_finite_is_a_gap_with_a_mark(fake, report, parse):
    rows = [{"step": step, "loss": None if step == 3 else 1.0 + step} for step in range(1, 6)]
    folder = fake("a", [*rows, '{"step": 6, "loss": NaN}\n', '{"step": 7, "loss": 8.0}\n'])
    assert report(folder).exit_code == 0
    page = parse(folder / "report.html")
    (plot,) = [tag["aria-label"] for tag in page.named("div") if tag.get("role") == "img"]
    assert plot == "loss over steps. last 8, lowest 2 at step 1. not finite at steps 3, 6"
    pieces = places((folder / "report.html").read_text(), "loss", "--c0")
    assert [len(piece) for piece in pieces] == [2, 2, 1]  # 1 and 2, 4 and 5, and 7 alone
    crosses = [tag for tag in page.named("use") if "stroke: var(--c0)" in tag["style"]]
    assert len(crosses) == 5 + 2  # a dot for each number, a cross for each that is none


def test_nothing_was_finite(fake, report, parse):
    folder = fake("a", [{"step": 1, "loss": None, "eval/accuracy": None}])
    assert report(folder).exit_code == 0
    cells = parse(folder / "report.html").results()["a"]
    assert (cells["last loss"], cells["best loss"]) == ("not finite", "-")


def test_steps_that_were_made_again(fake, report, parse):
    """After a kill at step 5 a run goes on from its checkpoint at 3: what it did then counts."""
    first = [{"step": step, "loss": float(step)} for step in range(1, 6)]
    again = [{"step": step, "loss": 10.0 * step} for step in (4, 5, 6)]
    folder = fake("a", [*first, '{"step": 6, "lo\n', *again])
    assert report(folder).exit_code == 0
    page = parse(folder / "report.html")
    assert page.results()["a"]["last loss"] == "60"
    assert "Left out: 1 line" in page.text
    assert "Left out: 2 rows of steps that were made again after a resume." in page.text


def test_rows_of_any_kind(fake, report, parse):
    rows = [
        *("[1, 2]\n", "7\n", "\n", '{"loss": 1}\n', '{"step": "x"}\n', '{"step": true}\n', '{"step": -1}\n'),
        {"step": 1, "loss": 2, "gate": {"a": 1}, "word": "x", "depth/mean": 3.5},
        {"step": 2, "loss": 10**400, "depth/mean": 4.5},
    ]
    folder = fake("a", rows)
    assert report(folder).exit_code == 0
    page = parse(folder / "report.html")
    assert "Left out: 6 lines of the metrics that could not be read." in page.text
    assert "Not drawn, as it holds no numbers everywhere: gate, word." in page.text
    assert "depth/mean over steps. last 4.5" in [tag.get("aria-label") for tag in page.named("div")]


@pytest.mark.parametrize("broken", ["env.json", "resolved.toml", "metrics.jsonl", "status.json"])
def test_a_file_that_is_broken_or_missing(land, tmp_path, report, parse, broken):
    folder = tmp_path / "a"
    shutil.copytree(land / "toy", folder)
    (folder / broken).write_bytes(b"\xff[[[")
    assert report(folder).exit_code == 0
    parse(folder / "report.html")
    if broken != "status.json":
        (folder / broken).unlink()
        assert report(folder).exit_code == 0
        parse(folder / "report.html")


def test_stages_without_a_configuration_to_name_them(land, tmp_path, report, parse):
    folder = tmp_path / "a"
    shutil.copytree(land / "staged", folder)
    (folder / "resolved.toml").unlink()
    assert report(folder).exit_code == 0
    assert list(parse(folder / "report.html").results()) == ["a", "warm", "main"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs/toi", "runs/toi is no run folder: there is no such folder; did you mean 'runs/toy'?"),
        ("runs", "runs is no run folder: expected a folder with status.json; did you mean 'runs/toy'?"),
        ("runs/toy/final", "runs/toy/final is no run folder: expected a folder with status.json; there are none"),
    ],
)
def test_a_folder_that_is_no_run(land, monkeypatch, report, name, message):
    monkeypatch.chdir(land.parent)
    done = report(name)
    assert (done.exit_code, done.stderr) == (2, f"error: {message}\n")


def test_a_run_named_twice(land, report):
    done = report(land / "toy", land / "staged/../toy")
    assert done.exit_code == 2
    assert done.stderr == f"error: {land}/staged/../toy is named twice, also as {land}/toy\n"


def test_runs_of_one_name_are_told_apart(fake, report, parse):
    folders = [fake(f"{name}/toy", [{"step": 1, "loss": 1.0}]) for name in "ab"]
    done = report(*folders)
    assert done.exit_code == 0, done.output
    target = folders[0].parents[1] / "report.html"
    assert done.stdout == f"{target}: a/toy, b/toy\n"
    assert list(parse(target).results()) == ["a/toy", "b/toy"]


def test_a_file_that_is_no_report_stays(fake, report, tmp_path):
    folder = fake("a", [{"step": 1, "loss": 1.0}])
    target = tmp_path / "mine.html"
    target.write_text("mine")
    done = report(folder, "--to", target)
    assert (done.exit_code, target.read_text()) == (2, "mine")
    assert done.stderr == f"error: {target} is no earlier report; give another name, or replace it with --overwrite\n"
    assert report(folder, "--to", target, "--overwrite").exit_code == 0
    first = target.read_text()
    assert report(folder, "--to", target).exit_code == 0  # an earlier report is replaced without a word
    assert first.startswith("<!DOCTYPE html>")
    assert report(folder, "--to", tmp_path, "--overwrite").stderr.startswith(f"error: {tmp_path} is a folder; ")
    assert report(folder, "--to", tmp_path / "no/x.html").stderr.startswith(f"error: {tmp_path}/no/x.html cannot be ")


def test_more_runs_than_can_be_told_apart(fake, report):
    folders = [fake(f"run-{n}", [{"step": 1, "loss": 1.0}]) for n in range(29)]
    done = report(*folders)
    assert (done.exit_code, done.stderr) == (
        2,
        "error: a report shows up to 28 runs, whose lines can be told apart; got 29\n",
    )


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_without_the_extra(fake, report, monkeypatch, missing):
    folder = fake("a", [{"step": 1, "loss": 1.0}])
    monkeypatch.setitem(sys.modules, missing, None)
    done = report(folder)
    assert done.exit_code == 2
    assert done.stderr == f'error: a report needs {missing}, which is not installed: pip install "hookbrew[report]"\n'
    assert not (folder / "report.html").exists()


def test_no_torch_is_imported_and_no_setting_of_matplotlib_stays(land, tmp_path):
    code = (
        "import sys\n"
        "from matplotlib import rcParams\n"
        "asked = [key for key in rcParams if key != 'backend']\n"  # to ask for that imports pyplot
        "before = [rcParams[key] for key in asked]\n"
        "from pathlib import Path\n"
        "from hookbrew.report import page, read\n"
        "page(read([Path(sys.argv[1])]))\n"
        "assert [rcParams[key] for key in asked] == before\n"
        "assert not {'torch', 'matplotlib.pyplot', 'hookbrew.loop'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(land / "toy")], check=True)


def test_a_run_in_progress_that_has_no_rows_yet(fake, report, parse):
    folder = fake("a", status={"status": "running", "total_steps": 1000})
    (folder / "metrics.jsonl").unlink()
    assert report(folder).exit_code == 0
    text = " ".join(parse(folder / "report.html").text.split())
    assert "There are no rows of metrics." in text
    assert "Steps 0 of 1,000" in text


def test_a_preempted_run(fake, report, parse):
    status = {"status": "preempted", "step": 1, "reason": "SIGTERM came; stopped after step 1 of 9"}
    folder = fake("a", [{"step": 1, "loss": 1.0}], status=status)
    assert report(folder).exit_code == 0
    page = parse(folder / "report.html")
    assert "SIGTERM came; stopped after step 1 of 9" in page.text
    assert page.results()["a"]["status"] == "preempted"
