"""Maps of a whole run: the same of one that was stopped, and a student that does not know of them."""

import json

import pytest

from hookbrew.errors import PreemptedError
from hookbrew.run import resume, run
from tests.run.conftest import BASE

MAPS = "{type='maps', every=4, student_attention='', teacher_attention=''}"


def files(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "images").iterdir())}


def trained(output, known, *callbacks):
    sets = [*BASE, f"callbacks=[{', '.join(callbacks)}]", f"output=runs/{output}"]
    run("toy.toml", sets, catalogue=known, quiet=True)


def test_a_run_that_was_stopped_and_one_without_maps(folder, known):
    """Dropout, running means and samples that are drawn anew: each of them would tell."""
    trained("whole", known, MAPS)
    trained("without", known)
    with pytest.raises(PreemptedError):
        trained("parts", known, MAPS, "{type='strike', at=[6]}")
    resume("runs/parts", catalogue=known, quiet=True, require="exact")
    runs = folder / "runs"
    assert [*files(runs / "whole")] == [f"similarity-{step:08}.png" for step in (1, 4, 8, 12)]
    assert files(runs / "parts") == files(runs / "whole")
    bytes_ = {(runs / name / "final/student.safetensors").read_bytes() for name in ("whole", "without", "parts")}
    assert len(bytes_) == 1
    for name in ("whole", "parts"):
        assert "degraded" not in json.loads((runs / name / "status.json").read_text())


def test_maps_that_come_later_are_no_other_run(folder, known):
    with pytest.raises(PreemptedError):
        trained("late", known, "{type='strike', at=[6], once=true}")
    sets = [f"callbacks=[{MAPS}, {{type='strike', at=[6], once=true}}]"]
    resume("runs/late", sets, catalogue=known, quiet=True, require="exact")
    assert [*files(folder / "runs/late")] == ["similarity-00000008.png", "similarity-00000012.png"]


def test_a_missing_extra_is_found_when_options_are_checked(toy, hookbrew, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = hookbrew("check", "toy.toml", "-s", "callbacks=[{type='maps'}]")
    assert done.exit_code == 2
    told = 'drawing needs matplotlib, which is not installed: pip install "hookbrew[report]"'
    assert done.stderr == f"error: -s callbacks=[{{type='maps'}}]: callbacks[0]: {told}\n"
