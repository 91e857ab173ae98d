"""Distributions on disk, as pip leaves them, for discovery to find."""

import importlib
import sys
from textwrap import dedent

import pytest

HOME = "hookbrew"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """site(distribution, version, "name = module", text of the module): installs a plugin for one test.

    Beside the standard pack, nothing else that is installed here is found.
    """
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    ours = {HOME}

    def install(distribution, version, entry, text=None):
        ours.add(distribution)
        module = entry.partition("=")[2].strip().partition(":")[0]
        if text is not None:
            (folder / f"{module}.py").write_text(dedent(text))
        info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[hookbrew]\n{entry}\n")
        importlib.invalidate_caches()
        return folder

    # the package re-exports the function `catalogue`, which hides the module of that name
    module = sys.modules["hookbrew.plugin.catalogue"]
    everything = module.installed
    monkeypatch.setattr(module, "installed", lambda: [f for f in everything() if f.distribution in ours])
    for variable in (module.ALLOW, module.BLOCK):
        monkeypatch.delenv(variable, raising=False)
    yield install
    for name, loaded in list(sys.modules.items()):
        if str(getattr(loaded, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


SOUND = """\
from hookbrew.plugin import hookimpl

@hookimpl
def hookbrew_register_losses(register):
    register("{name}", "{module}_loss:Loss")
"""


@pytest.fixture
def sound(site):
    """sound(name): installs hookbrew-NAME 0.3, whose one loss has its own name."""

    def install(name, loss=None, **extra):
        module = f"hb_{name}"
        return site(f"hookbrew-{name}", "0.3", f"{name} = {module}", SOUND.format(name=loss or name, module=module))

    return install
