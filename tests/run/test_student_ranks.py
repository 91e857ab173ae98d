"""Two processes make the same student out of a teacher, before that is shared out over them."""

import os
from pathlib import Path

import pytest
from safetensors.torch import load_file

import hookbrew_plugins
from hookbrew.plugin import catalogue
from hookbrew.run import run
from tests.run.conftest import CONFIG, MODULE

TEXT = CONFIG.replace('[student]\nfactory = "toyland:Net"\n', '[student]\nfrom = "teacher"\nkeep = { layers = [1] }\n')


@pytest.fixture(scope="module")
def case(launched):
    """case("ddp"): the folder of the runs, and how one ended, which is the same on both ranks."""
    folders = []

    def prepare(folder):
        folders.append(folder)
        (folder / "toyland.py").write_text(MODULE)
        text = TEXT.replace('student = "layers[*]"', 'student = "layers[0]"')
        (folder / "toy.toml").write_text(text.replace('teacher = "layers[*]"', 'teacher = "layers[1]"'))
        here = Path.cwd()
        os.chdir(folder)
        try:
            known = catalogue(discover=False, plugins=[hookbrew_plugins])
            run("toy.toml", ["output=runs/one"], catalogue=known, quiet=True)
        finally:
            os.chdir(here)

    results = launched(Path(__file__).with_name("ranks_student.py"), prepare)

    def one(name):
        first, second = results(name)
        assert first == second
        return folders[0] / "runs", first

    return one


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_are_one(case, way):
    runs, ended = case(way)
    assert ended == {"step": 12}
    one, two = (load_file(runs / name / "final/student.safetensors") for name in ("one", way))
    assert list(one) == list(two)
    assert sum(name.startswith("layers.") for name in one) == 2
    assert max(float((one[name] - two[name]).abs().max()) for name in one) <= 1e-6


def test_a_mistake_is_told_by_both(case):
    message = "student.keep.layers: 'layers' has no layer 2; it has 2: 0 to 1"
    assert case("wrong")[1] == {"error": f"-s student.keep={{ layers = [2] }}: {message}"}
