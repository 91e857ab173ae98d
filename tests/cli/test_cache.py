"""`hookbrew cache build`, `info` and `verify`."""

import json
import os
import signal
import sys
import time

import pytest
from click.testing import CliRunner

from hookbrew.cache import Cache
from hookbrew.cli import main
from tests.run.taught import CONFIG, MODULE


@pytest.fixture
def folder(tmp_path, monkeypatch):
    sys.modules.pop("taughtland", None)
    (tmp_path / "taughtland.py").write_text(MODULE)
    (tmp_path / "toy.toml").write_text(f'{CONFIG}\n[cache]\nfolder = "kept"\n')
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("taughtland", None)


@pytest.fixture
def call(folder):
    """call("build", ...): the exit code and what was said."""

    def made(*words):
        done = CliRunner().invoke(main, ["cache", *words], prog_name="hookbrew")
        return done.exit_code, done.output

    return made


def test_build_adds_what_is_missing_and_a_run_needs_no_teacher(call, folder):
    kept = folder / "kept"
    assert call("build", "toy.toml", "-s", "data.train.number=20") == (
        0,
        f"teacher: 20 examples added, 20 in {kept}\n",
    )
    assert call("build", "toy.toml") == (0, f"teacher: 4 examples added, 24 in {kept}\n")
    before = sys.modules["taughtland"].Table.runs
    assert call("build", "toy.toml", "-s", "cache.missing=refuse", "-s", "data.batch_size=7") == (
        0,
        f"teacher: 0 examples added, 24 in {kept}\n",
    )
    assert sys.modules["taughtland"].Table.runs == before + 3
    done = CliRunner().invoke(main, ["run", "toy.toml", "--quiet", "-s", "cache.missing=refuse"])
    assert done.exit_code == 0, done.output


def test_build_of_a_file_without_a_cache_or_with_augments(call, folder):
    (folder / "none.toml").write_text(CONFIG)
    code, text = call("build", "none.toml")
    assert code == 2
    assert text.startswith('error: none.toml:1:1: cache: there is none: write [cache] with folder = "..."\n')
    code, text = call("build", "toy.toml", "-s", "augments=[{type='mixup'}]", "-s", "cache.augmented=true")
    assert code == 2
    assert "augments: what they make of the data is not known before the training" in text


def test_info_says_what_it_is_of(call, folder):
    assert call("info", "toy.toml") == (0, f"teacher: nothing yet in {folder / 'kept'}\n")
    assert not (folder / "kept").exists()
    call("build", "toy.toml")
    code, text = call("info", "kept")
    assert code == 0
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "kept"
    assert lines[2:5] == [
        "computed in fp32; reads logits, layers.0, layers.1",
        "kept hidden: logits fp32, layers.0 fp32 per token, layers.1 fp32 per token",
        "tokenizer not told",
    ]
    assert lines[5].startswith("examples 24, ")
    code, text = call("info", "toy.toml")
    assert (code, text.splitlines()[0]) == (0, f"{folder / 'kept'}, of teacher and all that its losses read")
    (found,) = json.loads(call("info", "kept", "--json")[1])
    assert (found["examples"], found["shards"], found["taps"]) == (24, 1, ["logits", "layers.0", "layers.1"])
    code, text = call("info", "toy.toml", "-s", "seed=5")
    assert code == 2
    assert text.startswith(f"error: the cache {folder / 'kept'} is of something else: weights ")
    assert call("info", "kept", "-s", "seed=5")[0] == 2
    assert call("info", "nowhere.toml")[0] == 2


def test_verify_finds_one_wrong_byte_and_build_mends_it(call, folder):
    call("build", "toy.toml")
    assert call("verify", "kept") == (0, "kept: 24 examples are whole\n")
    (data,) = (folder / "kept").glob("*.data")
    content = bytearray(data.read_bytes())
    content[70] ^= 1
    data.write_bytes(content)
    code, text = call("verify", "kept")
    assert code == 1
    damage, counted, advice = text.splitlines()
    assert damage.startswith(f"kept/{data.name} is damaged: record 0, ")
    assert counted == "kept: 23 examples are whole, 1 are lost"
    assert advice == "`hookbrew cache build` computes what is lost again"
    assert call("build", "toy.toml") == (0, f"teacher: 1 examples added, 24 in {folder / 'kept'}\n")
    code, text = call("verify", "kept")
    assert code == 0
    assert text.splitlines()[-1] == "kept: 24 examples are whole"
    code, text = call("verify", "nowhere")
    assert (code, text) == (2, "error: nowhere is no cache: cache.json cannot be read: No such file or directory\n")


def begun(folder, forked, *, number=4000):
    """A process that builds, and has written something."""
    words = ["cache", "build", "toy.toml", "-s", f"data.train.number={number}", "-s", "data.batch_size=2"]
    process = forked("from hookbrew.cli import main; main()", *words)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not [p for p in folder.glob("kept/*.index") if p.stat().st_size]:
        time.sleep(0.005)
    return process


def test_ctrl_c_keeps_what_was_written(call, folder, forked):
    process = begun(folder, forked)
    os.kill(process.pid, signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 130
    assert told.split("\n")[0] == "what was written stays; the same command goes on"
    assert told.strip().endswith("interrupted")
    found = Cache(folder / "kept")
    assert found.verify() == []
    assert found.cut == 0
    assert 0 < len(found) < 4000


def test_a_build_that_is_killed_goes_on(call, folder, forked):
    process = begun(folder, forked, number=400)
    process.kill()
    process.communicate()
    before = len(Cache(folder / "kept"))
    number = ["-s", "data.train.number=400"]
    assert call("build", "toy.toml", *number)[0] == 0
    whole = ["-s", "cache.folder=whole"]
    assert call("build", "toy.toml", *number, *whole)[0] == 0
    one, other = Cache(folder / "kept"), Cache(folder / "whole")
    assert 0 < before <= len(one)
    assert one.verify() == []
    assert one.places.keys() == other.places.keys()
    for key in other.places:
        pairs = zip(one.record(key), other.record(key), strict=True)
        assert all(mine.shape == theirs.shape and bytes(mine.bytes) == bytes(theirs.bytes) for mine, theirs in pairs)
