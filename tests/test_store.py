"""Checkpoints on disk: whole, verified, or told to be neither."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookbrew.errors import CheckpointError
from hookbrew.store import MANIFEST, Store, opened

FILES = {"student.bin": bytes(range(256)) * 40, "more/state.json": b'{"x": 1}', "empty": b""}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "checkpoints", keep_last=2)


def test_what_was_written_is_read(store):
    place = store.write(7, FILES, {"epoch": 3})
    assert place.name == "step-00000007"
    found, wrong = store.newest()
    assert (found.step, found.facts, wrong) == (7, {"epoch": 3}, [])
    assert {name: found.read(name) for name in found.files} == FILES
    assert [path.name for path in store.folder.iterdir()] == ["step-00000007"]


def test_nothing_is_no_error(store):
    assert store.newest() == (None, [])
    assert store.steps() == []


def test_the_same_step_again_replaces_it(store):
    store.write(7, FILES, {})
    store.write(7, {"other": b"x"}, {})
    found, _ = store.newest()
    assert list(found.files) == ["other"]
    assert [path.name for path in store.folder.iterdir()] == ["step-00000007"]


def flip(place):
    content = bytearray((place / "student.bin").read_bytes())
    content[5000] ^= 1
    (place / "student.bin").write_bytes(content)
    return f"{place}/student.bin is damaged: its checksum is another"


def shorten(place):
    (place / "student.bin").write_bytes(FILES["student.bin"][:-1])
    return f"{place}/student.bin has 10239 bytes, and 10240 were written"


def hole(place):
    with (place / "student.bin").open("r+b") as file:
        file.seek(100)
        file.write(bytes(64))
    return f"{place}/student.bin is damaged: its checksum is another"


def remove(place):
    (place / "empty").unlink()
    return f"{place}/empty cannot be read: No such file or directory"


def unlist(place):
    (place / MANIFEST).unlink()
    return f"{place} has no manifest.json: No such file or directory"


def tear(place):
    (place / MANIFEST).write_bytes((place / MANIFEST).read_bytes()[:-9])
    return f"{place}/manifest.json is damaged"


def outdate(place):
    manifest = json.loads((place / MANIFEST).read_text())
    (place / MANIFEST).write_text(json.dumps(manifest | {"format": 99}))
    return f"{place} has format 99; this hookbrew reads 1"


def add(place):
    (place / "foreign").touch()
    return f"{place} holds what its manifest.json does not name: foreign"


def void(place):
    shutil.rmtree(place)
    place.mkdir()
    return f"{place} has no manifest.json: No such file or directory"


@pytest.mark.parametrize("harm", [flip, shorten, hole, remove, unlist, tear, outdate, add, void])
def test_a_damaged_one_is_told_and_an_older_one_taken(store, harm):
    store.write(1, FILES, {})
    store.write(2, FILES, {})
    message = harm(store.place(2))
    found, wrong = store.newest()
    assert found.step == 1
    assert wrong == [message]


def test_none_that_is_whole_is_an_error_naming_all(store):
    messages = []
    for step, harm in [(1, flip), (2, shorten), (3, unlist)]:
        store.write(step, FILES, {})
        messages.append(harm(store.place(step)))
    with pytest.raises(CheckpointError) as caught:
        store.newest()
    assert str(caught.value) == f"none of the checkpoints in {store.folder} is whole: {'; '.join(messages[::-1])}"


def test_a_file_that_changes_after_it_was_verified(store):
    found = opened(store.write(1, FILES, {}))
    flip(found.folder)
    with pytest.raises(CheckpointError, match="is damaged"):
        found.read("student.bin")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("flipped")).write(1, {"student.bin": FILES["student.bin"]}, {})


@given(st.integers(0, 10239), st.integers(0, 7))
def test_any_flipped_bit_is_noticed(written, place, bit):
    content = bytearray(FILES["student.bin"])
    content[place] ^= 1 << bit
    (written / "student.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        opened(written)


def test_pruning(tmp_path):
    store = Store(tmp_path, keep_last=2, keep_every=4)
    for step in range(1, 10):
        store.write(step, FILES, {})
        store.prune(keep=[3])
        assert store.steps()[0] == step
    assert store.steps() == [9, 8, 4, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{s:08}" for s in (3, 4, 8, 9)]


def test_leftovers_are_never_read_and_go(store):
    store.write(1, FILES, {})
    for name in (".new-00000009", ".old-00000008"):
        shutil.copytree(store.place(1), store.folder / name)
    assert store.newest()[0].step == 1
    store.clean()
    assert [path.name for path in store.folder.iterdir()] == ["step-00000001"]


WRITER = """
    import resource, signal, sys
    from pathlib import Path
    from hookbrew.errors import CheckpointError
    from hookbrew.store import Store

    store = Store(Path(sys.argv[1]))
    store.write(1, {"a": b"x" * 1000}, {})
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    for step in (1, 2):
        try:
            store.write(step, {"a": b"x" * 100, "b": b"y" * 9000}, {})
        except CheckpointError as error:
            print(error)
"""


def test_a_full_disk_leaves_what_stood_there(tmp_path):
    code = textwrap.dedent(WRITER)
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"the checkpoint {tmp_path}/step-0000000{step} cannot be written: File too large" for step in (1, 2)
    ]
    found, wrong = Store(tmp_path).newest()
    assert (found.step, list(found.files), wrong) == (1, ["a"], [])
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096


KILLED = """
    import sys, time
    from pathlib import Path
    from hookbrew import store as module

    put = module.put

    def slow(path, content):
        print("file", flush=True)
        time.sleep(0.02)
        put(path, content)

    module.put = slow
    store = module.Store(Path(sys.argv[1]), keep_last=2)
    step = max(store.steps(), default=0)
    while True:
        step += 1
        store.write(step, {"a": bytes([step % 256]) * 5000, "b": b"y"}, {"step": step})
        store.prune()
        print("saved", step, flush=True)
"""


def test_an_exception_from_elsewhere_leaves_what_stood_there(store, monkeypatch):
    """As of torch, which raises wherever the training is when a process that loads data has died."""
    store.write(7, FILES, {"epoch": 3})
    with pytest.raises(TypeError):
        store.write(8, FILES, {"epoch": object()})
    rename = os.rename

    def dies(source, target):
        if ".new-" in str(source):
            raise RuntimeError("worker exited")
        rename(source, target)

    monkeypatch.setattr(os, "rename", dies)
    with pytest.raises(RuntimeError):
        store.write(7, {"other.bin": b"1"}, {"epoch": 4})
    assert [path.name for path in store.folder.iterdir()] == ["step-00000007"]
    assert store.newest()[0].facts == {"epoch": 3}


def test_killed_at_any_moment(tmp_path):
    """Whatever a process was doing, the newest checkpoint is whole, and no older than the last that was reported."""
    reported = 0
    for files in (1, 2, 3, 4, 5, 8):
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(KILLED), tmp_path], stdout=subprocess.PIPE)
        seen = 0
        for line in process.stdout:
            word, *rest = line.split()
            reported = int(rest[0]) if word == b"saved" else reported
            seen += word == b"file"
            if seen == files:
                break
        os.kill(process.pid, signal.SIGKILL)
        later = re.findall(rb"saved (\d+)", process.communicate()[0])
        reported = int(later[-1]) if later else reported
        found, wrong = Store(tmp_path).newest()
        assert wrong == []
        assert (found.step if found else 0) >= reported
        assert found is None or found.read("a") == bytes([found.step % 256]) * 5000
    Store(tmp_path).clean()
    assert all(path.name.startswith("step-") for path in tmp_path.iterdir())
