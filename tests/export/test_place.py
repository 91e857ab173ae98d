"""An export stands whole or not at all, and nothing that somebody else made is lost."""

import json

import pytest
from filelock import FileLock

from hookbrew.errors import FolderError
from hookbrew.export.place import fresh, refuse


@pytest.fixture
def there(tmp_path):
    """A folder of an earlier export."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old.bin").write_text("old")
    (folder / "README.md").write_text("card")
    (folder / "export.json").write_text(json.dumps({"files": {"old.bin": 3}}))
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_it_takes_its_place(tmp_path):
    with fresh(tmp_path / "a/b/out") as folder:
        (folder / "x").write_text("new")
        assert not (tmp_path / "a/b/out").exists()
    assert names(tmp_path / "a/b/out") == ["x"]
    assert names(tmp_path / "a/b") == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_after_an_exception_nothing_is_left(tmp_path, there, error):
    def broken(folder):
        with fresh(folder) as inside:
            (inside / "x").write_text("new")
            raise error

    for folder in (tmp_path / "a/b/out", there):
        with pytest.raises(error):
            broken(folder)
    assert names(tmp_path) == ["out"]
    assert names(there) == ["README.md", "export.json", "old.bin"]


def test_it_replaces_an_earlier_one(tmp_path, there):
    refuse(there, tmp_path / "run", overwrite=True)
    with fresh(there) as folder:
        (folder / "x").write_text("new")
        assert (there / "old.bin").read_text() == "old"
    assert names(there) == ["x"]
    assert names(tmp_path) == ["out"]


def test_what_a_killed_process_left(tmp_path, there):
    """Killed between the two renames, it left the earlier export under another name: it stands again."""
    there.rename(tmp_path / ".old-out")
    (tmp_path / ".new-out").mkdir()
    (tmp_path / ".new-out/half").write_text("half")
    with pytest.raises(ValueError, match=r"^no$"), fresh(there):
        raise ValueError("no")
    assert names(there) == ["README.md", "export.json", "old.bin"]
    assert names(tmp_path) == ["out"]


def test_two_processes(tmp_path):
    with FileLock(tmp_path / ".lock-out"), pytest.raises(FolderError, match=r"^another process exports to .*/out$"):
        fresh(tmp_path / "out").__enter__()


def test_refused(tmp_path, there):
    run = there / "runs/x"
    cases = {
        (there, False): "out exists already; give another, or replace an earlier export with --overwrite",
        (there.parent / "link", True): "link is a link, which is not replaced; give another name",
        (there.parent / "file", True): "file is a file, which is not replaced; give another name",
        (there.parent / "mine", True): "mine holds what is no part of an export: thesis.md; remove it yourself",
        (
            there.parent / "file/out",
            True,
        ): f"out cannot be made: {there.parent}/file is not a folder that can be written to",
    }
    (there.parent / "link").symlink_to(there)
    (there.parent / "file").write_text("x")
    (there.parent / "mine").mkdir()
    (there.parent / "mine/thesis.md").write_text("x")
    for (folder, overwrite), said in cases.items():
        with pytest.raises(FolderError) as error:
            refuse(folder, run, overwrite=overwrite)
        assert str(error.value).endswith(said)
    with pytest.raises(FolderError, match=r"out holds the run that is exported; give another folder$"):
        refuse(there, run, overwrite=True)
    (there / "notes.txt").write_text("mine")
    with pytest.raises(FolderError, match=r"holds what is no part of an export: notes.txt; remove it yourself$"):
        refuse(there, tmp_path / "run", overwrite=True)


def test_a_disk_that_takes_nothing(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FolderError, match=r"^.*/file/out cannot be written: "):
        fresh(tmp_path / "file/out").__enter__()
