"""A scaffolded plugin in a real environment: installed by pip, listed, tested, trained with, and uninstalled."""

import subprocess
import sys
import venv

import pytest

TRAIN = """
import torch
import hookbrew as hb

torch.manual_seed(0)
teacher, student = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
batches = [{"input": torch.randn(8, 4)} for _ in range(4)]
rows = []

class Keep:
    def log(self, state):
        rows.append(state.record["loss/brand_new"])

run = hb.Distillation(teacher, student, losses=[hb.loss("brand_new", scale=2.0)])
optimizer = torch.optim.SGD(student.parameters(), 1.0)
run.fit(batches, optimizer=optimizer, steps=40, log_every=1, callbacks=[Keep()])
assert rows[-1] < rows[0] / 4, rows
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of a new environment that sees everything installed here."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, system_site_packages=True, symlinks=True)
    # --system-site-packages shows those of the interpreter that made this one's environment, not of this one
    (site,) = folder.glob("lib/python*/site-packages")
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (site / "ours.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in ours))
    return folder / "bin" / "python"


def call(python, *arguments, cwd):
    done = subprocess.run([python, "-P", *arguments], capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_from_new_to_uninstall(python, tmp_path):
    command = ("-m", "hookbrew", "plugins")
    call(python, *command, "new", "brand-new", cwd=tmp_path)
    package = tmp_path / "hookbrew-brand-new"
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    call(python, *install, "-e", str(package), cwd=tmp_path)
    listed = call(python, *command, "list", cwd=tmp_path)
    assert "brand_new  0.1.0    hookbrew-brand-new  losses brand_new" in listed
    assert 'type = "brand_new"' in call(python, *command, "show", "brand_new", cwd=tmp_path)
    assert "2 passed" in call(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=package)
    call(python, "-c", TRAIN, cwd=tmp_path)
    call(python, "-m", "pip", "uninstall", "--quiet", "--yes", "hookbrew-brand-new", cwd=tmp_path)
    assert "brand_new" not in call(python, *command, "list", cwd=tmp_path)
